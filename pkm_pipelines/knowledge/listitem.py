"""How a list item begins: its bullet or number, its check box, and in Logseq a marker such as `TODO`."""

from __future__ import annotations

import re

# An item that a tab indents begins, for pulldown-cmark, at the end of the line before.
_ITEM = re.compile(r"[\s>]*([-*+]|\d{1,9}[.)])(?:[ \t]+\[([^\r\n]\ufe0f?)\][ \t]+|[ \t]*)")
_MARKER = re.compile(
    r"(?:#{1,6}[ \t]+)?(TODO|LATER|WAITING|WAIT|DOING|NOW|IN-PROGRESS|DONE|CANCELL?ED)(?:[ \t]+|(?=[\r\n]|$))"
)
_MARKER_STATUS = {"DOING": "/", "NOW": "/", "IN-PROGRESS": "/", "DONE": "x", "CANCELED": "-", "CANCELLED": "-"}

MARK_LENGTH = 24
"""Characters from where the parser sees an item begin to its check box, at most: white space, number, blanks."""


class ListItem:
    """A list item that is being read: where its text begins, where its first paragraph and its own content end.

    `status` is the character in its check box, None without one. The ends are -1 as long as they are not known.
    """

    __slots__ = ("own_end", "start", "status", "text_end", "text_start")

    def __init__(self, start: int, text_start: int, status: str | None):
        self.start = start
        self.text_start = text_start
        self.status = status
        self.text_end = -1
        self.own_end = -1


def may_have_tasks(source: str) -> bool:
    """Whether any bracket is closed before a blank, as every check box is; wikilinks do not count."""
    return ("\t" in source and "]\t" in source) or source.count("] ") > source.count("]] ")


def open_item(source: str, start: int, end: int, *, markers: bool) -> ListItem:
    """Read the beginning of the list item between `start` and `end`; with `markers`, also one such as `TODO`.

    Obsidian takes any one character as a status, which is kept as it is. A marker of Logseq becomes the character that
    Obsidian's users write for the same: blank for to do, `/` for begun, `x` for done, `-` for cancelled.
    """
    match = _ITEM.match(source, start, end)
    if match is None:
        return ListItem(start, start, None)
    status: str | None = match[2]
    text_start = match.end()
    marker = _MARKER.match(source, text_start, end) if markers and status is None else None
    if marker is not None:
        status = _MARKER_STATUS.get(marker[1], " ")
        text_start = marker.end()
    return ListItem(match.start(1), text_start, status)
