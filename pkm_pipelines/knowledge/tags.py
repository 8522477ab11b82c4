"""What a tag is: `#word`, in the body of a note or in its front matter.

Obsidian's rule (its help, "Tags"): letters and digits of any script, `_`, `-`, `/` for nesting,
emoji and other symbols; not only digits; no blanks. So a tag ends at white space and at punctuation,
the ASCII kind, the general kind (U+2000 to U+206F) and the Chinese, Japanese and fullwidth kinds.
The zero-width joiner stays inside, because emoji are made with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NOT_IN_TAG = (
    r"\s\x00-\x2c.:;<=>?@\[\\\]^`{|}~\x7f-\xa0\xa1\xab\xb7\xbb\xbf"
    r"\u2000-\u200c\u200e-\u206f\u2e00-\u2e7f\u3000-\u3004\u3008-\u3020\u3030\u303d-\u303f\u30fb"
    r"\ufe10-\ufe19\ufe30-\ufe6f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff3e\uff40\uff5b-\uff65\ufeff\ufffc\ufffd"
)
# Not first: what makes "#" a key cap or colours it is a part of an emoji and no tag.
_TAG = re.compile(rf"#(?![\ufe0e\ufe0f\u20e3])([^{_NOT_IN_TAG}]+)")
_WORD = re.compile(rf"[^{_NOT_IN_TAG}]+")
_DIGITS = re.compile(r"[0-9]+")
_NOT_BEFORE = frozenset("/#&=?.:+\\@~%$^-_")
"""A '#' right after one of these, or after a letter or digit, is a part of something else: a URL, `C#`."""


def is_tag(word: str) -> bool:
    """Whether `word`, without '#', is a whole tag."""
    return _WORD.fullmatch(word) is not None and _DIGITS.fullmatch(word) is None and word.strip("/") != ""


def find_tags(text: str) -> Iterator[tuple[str, int, int]]:
    """Find what looks like a tag: (tag without '#', start, end). Code and links are the caller's business."""
    for match in _TAG.finditer(text):
        start = match.start()
        if start:
            before = text[start - 1]
            if before.isalnum() or before in _NOT_BEFORE:
                continue
        tag = match[1].rstrip("/")
        if tag and _DIGITS.fullmatch(tag) is None:
            yield tag, start, start + 1 + len(tag)


def front_matter_tags(value: object) -> tuple[list[str], list[str]]:
    """The tags a front-matter value states, and the words in it that are none.

    A list of tags or one tag; as in Obsidian since 1.9, `a, b` in one string is no tag.
    """
    words = value if isinstance(value, list) else [value]
    tags: list[str] = []
    others: list[str] = []
    for word in words:
        if word is None or isinstance(word, (dict, list, bool)):
            continue
        name = str(word).strip().removeprefix("#").rstrip("/")
        if is_tag(name):
            tags.append(name)
        elif name:
            others.append(name)
    return tags, others
