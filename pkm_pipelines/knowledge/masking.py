"""Blanking what a Markdown parser must not see: front matter, block comments, Logseq's properties and log books.

What is blanked becomes white space of the same length, so that every offset into the masked text is an offset into
the content.

A block comment opens at the beginning of a line, on a line without a second `%%`, and goes on to the next
`%%`, wherever that is; unclosed, it is no comment. A comment within one line is inline, and what is in it
counts: that is how Obsidian indexes them. Fenced code and HTML comments are stepped over, since `%%` is
ordinary there (Mermaid writes its comments so).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pkm_pipelines.knowledge.note import Flavour

_PREFIX = r"^[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*"
_FENCE = r"(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})"
_COMMENT = r"(?P<comment>%%)(?![^\n]*%%)"
_HTML = r"(?P<html><!--)"
_DRAWER = r"(?P<drawer>:(?:LOGBOOK|PROPERTIES):[ \t\r]*$)"
_PLANNING = r"(?P<planning>(?:SCHEDULED|DEADLINE):[ \t]*<[^<>\r\n]*>)"
_PROPERTY = r"(?P<key>[^\s:`#\[\](){}\"'/|<>-][^\s:`\[\](){}\"'|<>]*)::(?=\s|$)(?P<value>[^\r\n]*)"
_OBSIDIAN = re.compile(f"{_PREFIX}(?:{_FENCE}|{_COMMENT}|{_HTML})", re.MULTILINE)
_LOGSEQ = re.compile(f"{_PREFIX}(?:{_FENCE}|{_COMMENT}|{_HTML}|{_DRAWER}|{_PLANNING}|{_PROPERTY})", re.MULTILINE)
_DRAWER_END = re.compile(r"^[ \t]*:END:[ \t\r]*$", re.MULTILINE)
_NOT_LINE_END = re.compile(r"[^\r\n]")


class Property(NamedTuple):
    """One `key:: value` line of Logseq; the span is the value's."""

    key: str
    value: str
    start: int
    end: int


def mask(content: str, body: int, flavour: Flavour) -> tuple[str, list[Property]]:
    """Blank what is no Markdown in `content`, whose Markdown begins at `body`; and the Logseq properties in it."""
    properties: list[Property] = []
    text = content.replace("\x00", "\ufffd") if "\x00" in content else content  # CommonMark, section 2.3
    if body:
        text = "\n" * body + text[body:]
    spans: list[tuple[int, int]] = []
    if flavour == "logseq" or ("%" in text and "%%" in text):  # one character is found faster than two
        _find_spans(text, body, _LOGSEQ if flavour == "logseq" else _OBSIDIAN, spans, properties)
    if not spans:
        return text, properties
    pieces: list[str] = []
    position = 0
    for start, end in spans:
        pieces.append(text[position:start])
        pieces.append(_blank(text, start, end))
        position = end
    pieces.append(text[position:])
    return "".join(pieces), properties


def _find_spans(
    text: str, body: int, pattern: re.Pattern[str], spans: list[tuple[int, int]], properties: list[Property]
) -> None:
    position = body
    drawers = True
    while (match := pattern.search(text, position)) is not None:
        kind = match.lastgroup
        position = match.end()
        if kind == "fence":
            position = _end_of_fence(text, match)
        elif kind == "html":
            close = text.find("-->", position)
            position = len(text) if close < 0 else close + 3
        elif kind == "comment":
            close = text.find("%%", position)
            if close >= 0:
                position = close + 2
                spans.append((match.start(kind), position))
        elif kind == "drawer":
            close = _DRAWER_END.search(text, position) if drawers else None
            if close is None:
                drawers = False  # nor will a later one be closed
            else:
                position = close.end()
                spans.append((match.start(kind), position))
        elif kind == "planning":
            spans.append((match.start(kind), position))
        else:
            spans.append((match.start("key"), position))
            value = match["value"]
            start = position - len(value.lstrip())
            properties.append(Property(match["key"].lower(), value.strip(), start, start + len(value.strip())))


def _end_of_fence(text: str, match: re.Match[str]) -> int:
    fence = match["fence"]
    close = re.compile(rf"^[ \t>]*{fence[0]}{{{len(fence)},}}[ \t\r]*$", re.MULTILINE).search(text, match.end())
    return len(text) if close is None else close.end()


def _blank(text: str, start: int, end: int) -> str:
    """White space in place of a span. Before text on the same line it is an HTML tag, since enough blanks are code."""
    blank = _NOT_LINE_END.sub(" ", text[start:end])
    line = blank.rfind("\n") + 1
    rest = text.find("\n", end)
    if len(blank) - line > 3 and text[end : rest if rest >= 0 else len(text)].strip():
        return blank[:line] + "<i" + blank[line + 3 :] + ">"
    return blank
