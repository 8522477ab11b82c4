"""One walk over the Markdown of a note: headings, links, tasks, callouts, blocks, code, and the plain text.

pyromark (pulldown-cmark, CommonMark with the extensions that Obsidian has) finds the structure; what Obsidian
adds to Markdown is read from the source at the places where the structure says it may stand. Offsets in
the events are bytes; one table turns them into characters.

The plain text keeps what a reader sees as prose: text, inline code, the text of links, the alternative text of
images, the text of HTML blocks without tags. It leaves out code blocks, formulas, embeds, comments, block ids,
and the marks of tasks and callouts.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import pyromark
import pyromark.event

from pkm_pipelines.knowledge.linktext import heading_anchor, read_link
from pkm_pipelines.knowledge.listitem import MARK_LENGTH, ListItem, may_have_tasks, open_item
from pkm_pipelines.knowledge.note import Block, Callout, Flavour, Footnote, Heading, Link, Task
from pkm_pipelines.knowledge.rawtext import character_offsets, heading_text, html_text, one_line, trimmed

_Handler = Callable[[Any, Any, int, int], None]
_OPTION = pyromark.Options
_PARSER = pyromark.Markdown(
    options=_OPTION.ENABLE_TABLES
    | _OPTION.ENABLE_FOOTNOTES
    | _OPTION.ENABLE_STRIKETHROUGH
    | _OPTION.ENABLE_MATH
    | _OPTION.ENABLE_WIKILINKS
)

_CALLOUT = re.compile(r"\s*>[ \t]?\[!([^\]\r\n]+)\]([+-]?)[ \t]*([^\r\n]*)")
_BLOCK_ID = re.compile(r"(?:^|(?<=[ \t\n]))\^([A-Za-z0-9-]+)$")
_LANGUAGE = re.compile(r"[\s{.]*([^\s{}.,:=]+)")
_IMAGE_SIZE = re.compile(r"\|\d+(?:x\d+)?$")
_LEVEL = {"H1": 1, "H2": 2, "H3": 3, "H4": 4, "H5": 5, "H6": 6}


class Outline:
    """What one walk over the masked text of a note finds, in the order of the note.

    `items` holds the span of every list item, without the lists under it.
    """

    def __init__(self, text: str, flavour: Flavour):
        self.headings: list[Heading] = []
        self.links: list[Link] = []
        self.tasks: list[Task] = []
        self.callouts: list[Callout] = []
        self.blocks: list[Block] = []
        self.languages: dict[str, None] = {}
        self.footnotes: list[Footnote] = []
        self.items: list[tuple[int, int]] = []
        self.title: str | None = None
        self._source = text
        self._offsets = character_offsets(text)
        self._prose: list[int] = []
        self._logseq = flavour == "logseq"
        self._comments = "%" in text and "%%" in text
        self._carets = "^" in text
        self._pieces: list[str] = []
        self._html: list[str] = []
        self._code = False
        self._skip = 0
        self._quotes = 0
        self._lists = 0
        self._mark = 0
        self._comment: int | None = None
        self._previous: tuple[int, int] | None = None
        self._open_links: list[tuple[dict[str, Any], int]] = []
        self._open_items: list[ListItem | None] = []
        self._walk()
        self.tasks.sort(key=_start)
        self.links.sort(key=_start)
        self.items.sort()

    @property
    def text(self) -> str:
        """The plain text of the note."""
        text = "".join(self._pieces)
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        while "\n\n\n" in text:
            text = text.replace("\n\n\n", "\n\n")
        return text.strip()

    @cached_property
    def prose(self) -> list[int]:
        """The bounds of running text, start and end in turn: no code, formula, HTML, link or embed is within."""
        offsets = self._offsets
        return self._prose if offsets is None else [offsets[bound] for bound in self._prose]

    def is_prose(self, offset: int) -> bool:
        """Whether the character at `offset` stands in running text."""
        return bisect_right(self.prose, offset) % 2 == 1

    def _walk(self) -> None:
        pieces, prose, links = self._pieces, self._prose, self._open_links
        source, offsets = self._source, self._offsets
        comments = self._comments
        begin, finish = (
            (self._BEGIN, self._FINISH)
            if self._logseq or self._carets or may_have_tasks(source)
            else (self._BEGIN_PLAIN, self._FINISH_PLAIN)
        )
        event: Any  # a dict with one key, or a word; see pyromark.event
        for event, span in _PARSER.events_with_range(source, merge_text=True):
            if "Text" in event:
                if self._code:
                    continue
                value = event["Text"]
                if self._skip:
                    value, span = self._skip_mark(value, span)
                if not links:
                    prose.append(span["start"])
                    prose.append(span["end"])
                if comments and "%%" in value:
                    self._add_commented(value)
                else:
                    pieces.append(value)
            elif "Start" in event:
                value = event["Start"]
                handler = begin.get(value if isinstance(value, str) else next(iter(value)))
                if handler is not None:
                    start, end = span["start"], span["end"]
                    if offsets is not None:
                        start, end = offsets[start], offsets[end]
                    handler(self, value, start, end)
            elif "End" in event:
                value = event["End"]
                handler = finish.get(value if isinstance(value, str) else next(iter(value)))
                if handler is not None:
                    start, end = span["start"], span["end"]
                    if offsets is not None:
                        start, end = offsets[start], offsets[end]
                    handler(self, value, start, end)
            elif "Code" in event:
                pieces.append(event["Code"])
            elif "InlineHtml" in event:
                if event["InlineHtml"][:3].lower() == "<br":
                    pieces.append("\n")
            elif "Html" in event:
                self._html.append(event["Html"])
            elif event == "SoftBreak" or event == "HardBreak":
                pieces.append("\n")

    def _skip_mark(self, value: str, span: pyromark.event.Range) -> tuple[str, pyromark.event.Range]:
        """Cut from the text of an event what belongs to the mark of a task or callout."""
        start = span["start"] if self._offsets is None else self._offsets[span["start"]]
        mark = value[: max(0, self._skip - start)]
        if len(mark) < len(value):
            self._skip = 0
        return value[len(mark) :], {"start": span["start"] + len(mark.encode()), "end": span["end"]}

    def _add_commented(self, value: str) -> None:
        """Add text that holds `%%`: what stands between two of them in one block is hidden from the plain text."""
        for position, part in enumerate(value.split("%%")):
            if position:
                if self._comment is None:
                    self._comment = len(self._pieces)
                    self._pieces.append("%%")
                else:
                    del self._pieces[self._comment :]
                    self._comment = None
            self._pieces.append(part)

    # Blocks

    def _begin_block(self, _value: Any, start: int, _end: int) -> None:
        item = self._open_items[-1] if self._open_items else None
        if item is not None and item.text_end < 0:
            self._end_item_text(item, start)

    def _end_block(self, _value: Any, start: int, end: int) -> None:
        self._previous = (start, end)

    def _break_line(self, *_: Any) -> None:
        if self._pieces and not self._pieces[-1].endswith("\n"):
            self._pieces.append("\n")

    def _end_paragraph(self, _value: Any, start: int, end: int) -> None:
        item = self._open_items[-1] if self._open_items else None
        if item is not None and item.text_end < 0:
            self._end_item_text(item, end)
        elif self._carets or self._comments:
            self._end_text(start, end)
        self._pieces.append("\n" if self._lists else "\n\n")
        self._previous = (start, end)

    def _end_text(self, start: int, end: int) -> None:
        """A stretch of inline text is over: a comment in it too, and a block id may stand at its end."""
        self._comment = None
        caret = self._source.rfind("^", start, end) if self._carets else -1
        if caret < 0:
            return
        source = self._source[start:end].rstrip()
        match = _BLOCK_ID.search(source, caret - start)
        if match is None:
            return
        alone = not source[: match.start()].strip()
        span = self._previous if alone and self._previous is not None else (start, start + len(source))
        self.blocks.append(Block(match[1], *trimmed(self._source, *span)))
        if self._pieces and self._pieces[-1].endswith(match[0]):
            self._pieces[-1] = self._pieces[-1][: -len(match[0])].rstrip()

    def _begin_heading(self, value: Any, start: int, end: int) -> None:
        self._begin_block(value, start, end)
        self._mark = len(self._pieces)

    def _end_heading(self, value: Any, start: int, end: int) -> None:
        self._end_text(start, end)
        if (not self._quotes and not self._lists) or self._logseq:
            level = _LEVEL[value["Heading"]]
            whole = self._source[start:end]
            raw = whole.strip()
            start += len(whole) - len(whole.lstrip())
            text = heading_text(raw)
            self.headings.append(Heading(level, text, heading_anchor(text), start, start + len(raw)))
            if level == 1 and not self.title:
                self.title = " ".join("".join(self._pieces[self._mark :]).split())
        self._pieces.append("\n\n")
        self._previous = (start, end)

    def _begin_quote(self, value: Any, start: int, end: int) -> None:
        self._begin_block(value, start, end)
        self._quotes += 1
        match = _CALLOUT.match(self._source, start)
        if match is not None:
            kind, fold, title = match.groups()
            name = kind.partition("|")[0].strip().lower()
            self.callouts.append(Callout(name, title.strip() or None, fold or None, *trimmed(self._source, start, end)))
            self._skip = match.start(3)

    def _end_quote(self, _value: Any, start: int, end: int) -> None:
        self._quotes -= 1
        self._previous = (start, end)

    def _begin_code(self, value: Any, start: int, end: int) -> None:
        self._begin_block(value, start, end)
        self._code = True
        kind = value["CodeBlock"]
        if not isinstance(kind, str):
            match = _LANGUAGE.match(kind["Fenced"])
            if match is not None:
                self.languages[match[1].lower()] = None

    def _end_code(self, _value: Any, start: int, end: int) -> None:
        self._code = False
        self._previous = (start, end)

    def _end_html(self, _value: Any, start: int, end: int) -> None:
        text = html_text("".join(self._html))
        self._html.clear()
        if text:
            self._pieces.append(text + "\n\n")
        self._previous = (start, end)

    def _end_table(self, _value: Any, start: int, end: int) -> None:
        self._pieces.append("\n")
        self._previous = (start, end)

    def _end_row(self, _value: Any, _start: int, _end: int) -> None:
        self._pieces.append("\n")

    def _end_cell(self, _value: Any, _start: int, _end: int) -> None:
        self._comment = None
        self._pieces.append(" ")

    def _begin_footnote(self, value: Any, start: int, end: int) -> None:
        label = value["FootnoteDefinition"]
        self.footnotes.append(Footnote(label, *trimmed(self._source, start, end)))

    # List items and tasks

    def _begin_list(self, value: Any, start: int, end: int) -> None:
        self._lists += 1
        if self._lists > 1:
            self._begin_block(value, start, end)
            item = self._open_items[-1] if self._open_items else None
            if item is not None and item.own_end < 0:
                item.own_end = start
            self._break_line()

    def _end_list(self, _value: Any, start: int, end: int) -> None:
        self._lists -= 1
        if not self._lists:
            self._pieces.append("\n")
        self._previous = (start, end)

    def _begin_item(self, _value: Any, start: int, end: int) -> None:
        """Open an item: None for one that is no task and needs no block."""
        item = None
        if self._logseq or self._carets or self._source.find("[", start, start + MARK_LENGTH) >= 0:
            item = open_item(self._source, start, end, markers=self._logseq)
            if item.status is not None:
                self._skip = item.text_start
        self._open_items.append(item)

    def _end_item_text(self, item: ListItem, end: int) -> None:
        item.text_end = end
        if self._carets or self._comments:
            self._end_text(item.start, end)

    def _end_item(self, _value: Any, _start: int, end: int) -> None:
        item = self._open_items.pop()
        if item is not None and item.text_end < 0:
            self._end_item_text(item, end)
        self._break_line()
        if item is None or (item.status is None and not self._logseq):
            return
        start, own_end = trimmed(self._source, item.start, item.own_end if item.own_end >= 0 else end)
        if self._logseq:
            self.items.append((start, own_end))
        if item.status is not None:
            text = one_line(self._source[item.text_start : item.text_end])
            self.tasks.append(Task(item.status, text, start, own_end))

    # Links

    def _begin_link(self, value: Any, _start: int, _end: int) -> None:
        [data] = value.values()
        self._open_links.append((data, len(self._pieces)))

    def _end_link(self, _value: Any, start: int, end: int) -> None:
        data, mark = self._open_links.pop()
        link = read_link("link", data, self._source, start, end, self._pieces[mark:])
        if link is not None:
            self.links.append(link)
            if (
                link.subpath is not None
                and link.form == "wikilink"
                and not data["link_type"]["WikiLink"]["has_pothole"]
            ):
                self._pieces[mark:] = [link.display]

    def _end_image(self, _value: Any, start: int, end: int) -> None:
        data, mark = self._open_links.pop()
        link = read_link("embed", data, self._source, start, end, self._pieces[mark:])
        if link is not None:
            self.links.append(link)
            self._pieces[mark:] = [] if link.form == "wikilink" else [_IMAGE_SIZE.sub("", link.display)]

    _BEGIN: ClassVar[Mapping[str, _Handler]] = {
        "Heading": _begin_heading,
        "Item": _begin_item,
        "List": _begin_list,
        "BlockQuote": _begin_quote,
        "CodeBlock": _begin_code,
        "HtmlBlock": _begin_block,
        "Table": _begin_block,
        "FootnoteDefinition": _begin_footnote,
        "Link": _begin_link,
        "Image": _begin_link,
    }
    _FINISH: ClassVar[Mapping[str, _Handler]] = {
        "Paragraph": _end_paragraph,
        "Heading": _end_heading,
        "Item": _end_item,
        "List": _end_list,
        "BlockQuote": _end_quote,
        "CodeBlock": _end_code,
        "HtmlBlock": _end_html,
        "Table": _end_table,
        "TableHead": _end_row,
        "TableRow": _end_row,
        "TableCell": _end_cell,
        "FootnoteDefinition": _end_block,
        "Link": _end_link,
        "Image": _end_image,
    }
    _BEGIN_PLAIN: ClassVar[Mapping[str, _Handler]] = {tag: do for tag, do in _BEGIN.items() if tag != "Item"}
    _FINISH_PLAIN: ClassVar[Mapping[str, _Handler]] = {**_FINISH, "Item": _break_line}


def _start(found: Task | Link) -> int:
    return found.start or 0
