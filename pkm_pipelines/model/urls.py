"""URLs as they may be shown: everything secret in them replaced."""

from __future__ import annotations

import re

MASK = "***"
# Greedy up to the last '@': a password may itself hold '/', '?', '#' or '@' that somebody forgot to encode.
_PASSWORD = re.compile(r"(://[^/:@]*):.*@", re.DOTALL)
_PARAMETER = re.compile(
    r"([?&;][^=&;#]*(?:pass|pwd|secret|token|key|credential|signature)[^=&;#]*=)[^&;#]*", re.IGNORECASE
)


def redacted(url: str) -> str:
    """`url` with its password, and each query parameter that sounds like a secret, replaced by `***`.

    It rather hides too much (`http://host:80/a@b`) than too little.
    """
    return _PARAMETER.sub(rf"\1{MASK}", _PASSWORD.sub(rf"\1:{MASK}@", url))
