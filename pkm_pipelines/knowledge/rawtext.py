"""Reading the source of a note at a place that the parser has pointed out: offsets, trimmed spans, headings, HTML."""

from __future__ import annotations

import re
from html import unescape

import numpy as np

_HTML_TAG = re.compile(r"<[^<>]*>")
_HTML_HIDDEN = ("<script", "<style")


def character_offsets(text: str) -> memoryview | None:
    """For each byte of the UTF-8 form of `text` that begins a character, which character; None if all are ASCII."""
    if text.isascii():
        return None
    encoded = np.frombuffer(text.encode(), dtype=np.int8)
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum(encoded >= -0x40, out=offsets[1:])  # bytes 0x80 to 0xBF, as signed numbers the least, go on
    return offsets.data


def trimmed(source: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space, and the empty quote lines, at its end."""
    while True:
        while end > start and source[end - 1].isspace():
            end -= 1
        line = source.rfind("\n", start, end) + 1
        if line <= start or source[line:end].strip(" \t>"):
            return start, end
        end = line


def one_line(source: str) -> str:
    """Lines joined to one, without the indentation and quote marks at the beginning of each."""
    first, *others = source.split("\n")
    return " ".join([part for part in (first.strip(), *[line.lstrip(" \t>").rstrip() for line in others]) if part])


def heading_text(raw: str) -> str:
    """The text of a heading without its marks: '#' before and after, or the line under it."""
    content = raw.lstrip("#")
    if len(content) < len(raw) and (not content or content[0].isspace()):
        content = content.strip()
        text = content.rstrip("#")
        return text.rstrip() if not text or text[-1].isspace() else content
    lines = raw.splitlines()[:-1]
    return " ".join([line.strip() for line in lines])


def html_text(html: str) -> str:
    """The text of an HTML block, without tags, comments, scripts and styles."""
    if html.lstrip()[:7].lower().startswith(_HTML_HIDDEN):
        return ""
    visible: list[str] = []
    position = 0
    while (comment := html.find("<!--", position)) >= 0:
        visible.append(html[position:comment])
        close = html.find("-->", comment)
        position = len(html) if close < 0 else close + 3
    visible.append(html[position:])
    text = unescape(_HTML_TAG.sub(" ", "".join(visible)))
    return " ".join(text.split())
