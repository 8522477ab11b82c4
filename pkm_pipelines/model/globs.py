"""Which files are meant: globs as .gitignore writes them.

`*` and `?` stay within a folder name, `**` crosses folders, `[a-z]` and `[!a-z]` are classes. A pattern without
a slash (other than at its end) is meant at any depth. Case is ignored, as Obsidian ignores it for extensions and as
the file systems of macOS and Windows do. Python's own `glob.translate` came with 3.13 and `fnmatch` lets `*` cross
folders, so this is a translation of our own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


class Globs:
    """A set of globs, asked about paths relative to the root of a source, '/' between folders, NFC.

    With `below`, a folder that is meant is meant with all that is below it, as one expects of what is left out;
    without it a folder called `x.md` does not make notes of the pictures in it.
    Raises `ValueError` for a pattern that cannot be understood.
    """

    def __init__(self, patterns: Iterable[str], *, below: bool = False) -> None:
        regexes = [translate(pattern) for pattern in patterns]
        folders = [regex.removesuffix(_BELOW) for regex in regexes]
        self._files = _any([*regexes, *(f"{regex}/.+" for regex in folders)] if below else regexes)
        self._folders = _any(folders) if below else None

    def match(self, path: str) -> bool:
        """Whether the file at `path` is meant, itself or through a folder above it."""
        return self._files is not None and self._files.match(path) is not None

    def covers(self, folder: str) -> bool:
        """Whether everything below `folder` is meant, so that a walk need not enter it."""
        return self._folders is not None and self._folders.match(folder) is not None


_BELOW = "/.+"


def _any(regexes: list[str]) -> re.Pattern[str] | None:
    if not regexes:
        return None
    return re.compile("|".join(f"(?:{regex})\\Z" for regex in regexes), re.IGNORECASE | re.DOTALL)


def translate(pattern: str) -> str:
    """The regular expression of one glob, to be matched against a whole path; raises `ValueError`."""
    pattern = unicodedata.normalize("NFC", pattern)
    segments = [segment for segment in pattern.split("/") if segment not in ("", ".")]
    if not segments:
        raise ValueError(f"glob {pattern!r}: it names nothing (write `**` for everything)")
    anchored = "/" in pattern.rstrip("/")
    regex = "" if anchored else "(?:.+/)?"
    for segment in segments[:-1]:
        regex += "(?:[^/]+/)*" if segment == "**" else _segment(segment) + "/"
    if segments[-1] == "**":
        # "a/**" is everything below a; "**" alone is everything.
        regex = regex.removesuffix("/") + _BELOW if regex.endswith("/") else regex + ".+"
    else:
        regex += _segment(segments[-1]) + (_BELOW if pattern.endswith("/") else "")
    try:
        re.compile(regex)
    except re.error:  # all but ranges is escaped; what it says is about the expression and not about the glob
        raise ValueError(f"glob {pattern!r}: not a glob: a range in its brackets runs backwards") from None
    return regex


def _segment(segment: str) -> str:
    regex, at = "", 0
    while at < len(segment):
        character = segment[at]
        at += 1
        if character == "*":
            if not regex.endswith("[^/]*"):
                regex += "[^/]*"
        elif character == "?":
            regex += "[^/]"
        elif character == "[" and (end := _class_end(segment, at)) is not None:
            body = segment[at:end].replace("\\", "\\\\").replace("[", r"\[").replace("^", r"\^")
            regex += f"(?!/)[{'^' + body[1:] if body.startswith('!') else body}]"
            at = end + 1
        else:
            regex += re.escape(character)
    return regex


def _class_end(segment: str, start: int) -> int | None:
    """Where the class that began before `start` ends; a ']' first in it is one of its characters."""
    first = start + 1 if segment[start : start + 1] == "!" else start
    end = segment.find("]", first + 1)
    return None if end < 0 else end
