"""The sections of a note: each heading with the blocks that stand directly under it, measured in tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pkm_pipelines.knowledge import blocks
from pkm_pipelines.knowledge.blocks import Block

CHARACTERS_PER_TOKEN = 20
"""No language has as many on average; a tokenizer takes a "word" of a megabyte for one unknown token."""


class TokenCounter(Protocol):
    """Counts tokens as a model would, without those that it adds to every text."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text."""
        ...


@dataclass(slots=True)
class Piece:
    """A block, and what is embedded of it."""

    block: Block
    text: str
    tokens: int = 0

    @property
    def size(self) -> int:
        """What it takes of a chunk: its tokens, or more for what has hardly any, such as a file in base64."""
        return max(self.tokens, len(self.text) // CHARACTERS_PER_TOKEN)

    @property
    def order(self) -> tuple[int, bytes]:
        """How good a cut before this piece is, smallest first; it depends on nothing but the piece."""
        return self.block.rank, hashlib.blake2b(self.text.encode(), digest_size=8).digest()


@dataclass
class Section:
    """A heading and what stands directly under it. The text before the first heading is a section without one.

    `path` are the headings from the top down to its own. `numbers` are the headings whose lines it starts with:
    its own, preceded by those above it that have no text of their own. `parent` is the number of the heading
    above the first of these, -1 for none. `budget` is how many tokens a chunk of it may have.
    """

    content: str
    path: tuple[str, ...]
    parent: int
    numbers: tuple[int, ...]
    pieces: list[Piece]
    budget: int = 0

    @property
    def size(self) -> int:
        """What it takes of a chunk, in tokens."""
        return sum(piece.size for piece in self.pieces)

    @property
    def order(self) -> tuple[int, bytes]:
        """How good a cut before this section is, smallest first."""
        return self.pieces[0].order

    @property
    def path_above(self) -> tuple[str, ...]:
        """The headings above its first line."""
        return self.path[: len(self.path) - len(self.numbers)]

    def goes_with(self, following: Section) -> bool:
        """Whether the section after this one stands under the same heading as this one, or under this one."""
        return following.parent == self.parent or following.parent in self.numbers


def parse_sections(content: str, headings: Iterable[Mapping[str, Any]]) -> list[Section]:
    """The sections of a note that hold anything. `headings` have level, text and a span, in order."""
    sections: list[Section] = []
    stack: list[tuple[int, int, str]] = []  # level, number, text
    bare: Section | None = None
    for number, (level, text, start, heading_end, end) in enumerate(_heading_spans(content, headings)):
        while stack and stack[-1][0] >= level:
            stack.pop()
        parent = stack[-1][1] if stack else -1
        pieces = [_piece(content, block) for block in blocks.blocks(content, heading_end, end)]
        if level:
            stack.append((level, number, text))
            heading = content[start:heading_end].rstrip()
            pieces.insert(0, _piece(content, Block(start, start + len(heading), False, blocks.BLOCK)))
        path = tuple(text for _, _, text in stack)
        section = Section(content, path, parent, (number,) if level else (), pieces)
        if bare is not None and parent == bare.numbers[-1]:
            section = Section(content, path, bare.parent, (*bare.numbers, number), [*bare.pieces, *pieces])
            sections.pop()
        if section.pieces:
            sections.append(section)
        bare = section if level and len(section.pieces) == len(section.numbers) else None
    return sections


def _heading_spans(content: str, headings: Iterable[Mapping[str, Any]]) -> list[tuple[int, str, int, int, int]]:
    """Level, text, start of the line, end of the heading and end of its section, for each; level 0 is the start."""
    body = blocks.body_start(content)
    spans: list[tuple[int, str, int, int]] = [(0, "", body, body)]
    for heading in headings:
        start = content.rfind("\n", 0, heading["start"]) + 1
        line_end = content.find("\n", max(heading["end"] - 1, start))
        if spans[-1][3] <= start < len(content):
            spans.append((heading["level"], heading["text"] or "", start, len(content) if line_end < 0 else line_end))
    ends = [span[2] for span in spans[1:]] + [len(content)]
    return [(*span, end) for span, end in zip(spans, ends, strict=True)]


def measure(sections: Sequence[Section], counter: TokenCounter) -> None:
    """Count the tokens of every piece, and take apart those that exceed their section's budget.

    After this no piece exceeds the budget, unless it is a single character. The texts of all sections
    are counted together, because a tokenizer is fast on many texts at once. Each piece counts with a line
    break, so that sums hold for tokenizers that have a token for it.
    """
    _count([piece for section in sections for piece in section.pieces], counter)
    while True:
        added: list[Piece] = []
        for section in sections:
            added += _take_apart(section)
        if not added:
            break
        _count(added, counter)
    for section in sections:
        _glue_headings(section)


def _take_apart(section: Section) -> list[Piece]:
    """Replace the pieces that are too long by smaller ones, whose tokens are still to be counted."""
    added: list[Piece] = []
    pieces: list[Piece] = []
    headings = len(section.numbers)
    for index, piece in enumerate(section.pieces):
        limit = section.budget
        if index == headings and headings:  # the first block stays with its heading
            limit = max(limit - sum(p.size for p in section.pieces[:headings]), limit // 2)
        if piece.size > limit and piece.block.end - piece.block.start > 1:
            count = piece.size // limit + 1
            parts = [_piece(section.content, block) for block in blocks.finer(section.content, piece.block, count)]
            pieces += parts
            added += parts
        else:
            pieces.append(piece)
    section.pieces = pieces
    return added


def _glue_headings(section: Section) -> None:
    """Make one piece of the headings and the first block, where it fits: no heading is left behind alone."""
    count = len(section.numbers) + 1
    first = section.pieces[:count]
    if len(first) > 1 and len(section.numbers) and sum(piece.size for piece in first) <= section.budget:
        block = first[0].block._replace(end=first[-1].block.end)
        text = "\n".join(piece.text for piece in first if piece.text)
        section.pieces[:count] = [Piece(block, text, sum(piece.tokens for piece in first))]


def _piece(content: str, block: Block) -> Piece:
    text = content[block.start : block.end]
    return Piece(block, text if block.is_code else blocks.plain(text))


def _count(pieces: Sequence[Piece], counter: TokenCounter) -> None:
    for piece, tokens in zip(pieces, counter.count_tokens([f"{p.text}\n" for p in pieces]), strict=True):
        piece.tokens = tokens
