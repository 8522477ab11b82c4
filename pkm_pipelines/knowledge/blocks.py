"""The blocks of a Markdown text, and how a block that is too long is taken apart.

A block is a run of lines without a blank one between them, or a whole fence. That is all that chunking needs
of Markdown's structure beyond headings, it takes one pass, and it never fails. Every span is in characters of
the content. Expressions here run over untrusted text: each matches in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})")
_LINE = re.compile(r"[^\n]*\n?")
_FRONT_MATTER_END = re.compile(r"^(?:---|\.\.\.)[ \t]*\r?$", re.MULTILINE)
# A list item, table row or quoted line starts a part of its own.
_PART_START = re.compile(r"[ \t]*(?:[-*+][ \t]|\d{1,9}[.)][ \t]|\||>)")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+|[。！？｡]+[」』”’）]*\s*|\n")
_SPACE = re.compile(r"\s")


class Block(NamedTuple):
    """A span of the content without blanks at its ends. `rank` says how natural a cut before it is: 0 is best."""

    start: int
    end: int
    is_code: bool
    rank: int


BLOCK, PART, SENTENCE, WORD = range(4)


def body_start(content: str) -> int:
    """Where the text after the front matter starts; 0 if there is none."""
    start = 1 if content.startswith("\ufeff") else 0
    if not re.match(r"---[ \t]*\r?\n", content[start : start + 80]):
        return start
    end = _FRONT_MATTER_END.search(content, content.index("\n", start) + 1)
    return end.end() if end else start


def blocks(content: str, start: int, end: int) -> Iterator[Block]:
    """The blocks of `content[start:end]`, in order; together they hold all of it but white space."""
    fence: str | None = None
    fence_start = start
    block_start: int | None = None
    position = start
    while position < end:
        match = _LINE.match(content, position, end)
        assert match is not None
        line_end = match.end()
        opening = _FENCE.match(content, position, line_end)
        if fence is not None:
            if opening and opening[1].startswith(fence) and not content[opening.end() : line_end].strip():
                yield from _trimmed(content, fence_start, line_end, is_code=True)
                fence = None
        elif opening:
            if block_start is not None:
                yield from _trimmed(content, block_start, position, is_code=False)
            fence, fence_start, block_start = opening[1], position, None
        elif not content[position:line_end].strip():
            if block_start is not None:
                yield from _trimmed(content, block_start, position, is_code=False)
            block_start = None
        elif block_start is None:
            block_start = position
        position = line_end
    if fence is not None:
        yield from _trimmed(content, fence_start, end, is_code=True)
    elif block_start is not None:
        yield from _trimmed(content, block_start, end, is_code=False)


def finer(content: str, block: Block, count: int = 2) -> list[Block]:
    """A block in smaller parts: list items, rows or lines of code; then sentences; then `count` of like length.

    The last step cuts at blanks where it can, and always makes parts that are shorter: taking apart comes to an end.
    """
    if block.rank < PART and len(parts := _parts(content, block)) > 1:
        return parts
    if block.rank < SENTENCE and not block.is_code and len(parts := _sentences(content, block)) > 1:
        return parts
    return _lengths(content, block, count)


def _parts(content: str, block: Block) -> list[Block]:
    cuts: list[int] = []
    position = block.start
    while position < block.end:
        match = _LINE.match(content, position, block.end)
        assert match is not None
        if block.is_code or _PART_START.match(content, position, match.end()):
            cuts.append(position)
        position = match.end()
    return _cut(content, block, cuts, PART)


def _sentences(content: str, block: Block) -> list[Block]:
    cuts = [match.end() for match in _SENTENCE_END.finditer(content, block.start, block.end)]
    return _cut(content, block, cuts, SENTENCE)


def _lengths(content: str, block: Block, count: int) -> list[Block]:
    step = max((block.end - block.start) // count, 1)
    cuts = [block.start]
    for at in range(block.start + step, block.end, step):
        if blank := _SPACE.search(content, max(at, cuts[-1]), min(at + step, block.end)):
            cuts.append(blank.end())
        elif at > cuts[-1] and not _SPACE.search(content, cuts[-1], at):
            cuts.append(at)
    return _cut(content, block, cuts[1:] or [(block.start + block.end) // 2], WORD)


def _cut(content: str, block: Block, cuts: list[int], rank: int) -> list[Block]:
    edges = [block.start, *cuts, block.end]
    found: list[Block] = []
    for start, end in pairwise(edges):
        for part in _trimmed(content, start, end, is_code=block.is_code):
            found.append(part._replace(rank=rank if found else block.rank))
    return found


def _trimmed(content: str, start: int, end: int, *, is_code: bool) -> Iterator[Block]:
    text = content[start:end]
    if stripped := text.strip():
        start += len(text) - len(text.lstrip())
        yield Block(start, start + len(stripped), is_code, BLOCK)


_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\(<?[^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*>?(?:[ \t]+\"[^\"\n]*\")?\)")
_WIKILINK = re.compile(r"!?\[\[([^\[\]|\n]*)(?:\|([^\[\]\n]*))?\]\]")
_MARKS = re.compile(r"\*\*|~~|==|`|^#{1,6}[ \t]+|^[ \t]*>[ \t]?|[ \t]\^[A-Za-z0-9-]+[ \t]*$", re.MULTILINE)
_TAG = re.compile(r"</?[a-z][a-z0-9-]*(?:\s[^<>]*)?/?>")
_BLANKS = re.compile(r"[^\S\n]+")


def plain(text: str) -> str:
    """What a piece of Markdown says, for a model to read: no link targets, marks, comments or tags.

    A rough cut on purpose: what it leaves in costs a few tokens, and nothing is shown to anybody.
    """
    text = _without(_without(text, "<!--", "-->"), "%%", "%%")
    text = _WIKILINK.sub(_wikilink_text, text)
    text = _LINK.sub(r"\1", text)
    text = _TAG.sub(" ", text)
    return _BLANKS.sub(" ", _MARKS.sub("", text)).strip()


def _wikilink_text(match: re.Match[str]) -> str:
    target, shown = match[1], match[2]
    if shown and not shown.replace("x", "").isdigit():  # a number is the width of an image
        return shown
    return target.replace("#", " ").replace("^", "")


def _without(text: str, opening: str, closing: str) -> str:
    kept: list[str] = []
    position = 0
    while (start := text.find(opening, position)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        kept.append(text[position:start])
        position = end + len(closing)
    return "".join([*kept, text[position:]])
