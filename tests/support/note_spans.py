"""Whether the spans of a parsed note hold what they claim: one check for examples and for random text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pkm_pipelines.knowledge.note import Link, ParsedNote

_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])(?:\s|$)")


def check_spans(note: ParsedNote) -> None:
    """Raise `AssertionError` where a span of `note` is out of bounds, out of order or of something else."""
    content = note.content.replace("\x00", "\ufffd")
    for tag in note.tag_spans:
        written = content[tag.start : tag.end]
        assert tag.tag in written, (tag, written)
        assert written.removeprefix("#") == tag.tag or "[[" in written or not written.startswith("#"), (tag, written)
    for heading in note.headings:
        written = content[heading.start : heading.end]
        assert written == written.strip()
        for word in heading.text.split():
            assert word in written, (heading, written)
    for task in note.tasks:
        written = content[task.start : task.end]
        assert _ITEM.match(written), (task, written)
        for word in task.text.split():
            assert word in written, (task, written)
    for callout in note.callouts:
        written = content[callout.start : callout.end]
        assert re.match(r"\s*>", written), (callout, written)
        assert f"[!{callout.type}" in written.lower() or "[!" in written, (callout, written)
    for footnote in note.footnotes:
        assert content[footnote.start : footnote.end].lstrip().startswith(f"[^{footnote.label}]:"), footnote
    for link in note.links:
        _check_link(link, content)
    for found in (note.headings, note.tag_spans, note.tasks, note.callouts, note.footnotes, _in_body(note.links)):
        _check_order(found, len(content))
    _check_order(note.block_ids, len(content), ordered=False)


def _in_body(links: list[Link]) -> list[Link]:
    assert all(link.start is None and link.end is None for link in links if link.form == "frontmatter")
    return [link for link in links if link.form != "frontmatter"]


def _check_link(link: Link, content: str) -> None:
    if link.start is None:
        return
    written = content[link.start : link.end]
    mark = "!" if link.kind == "embed" else ""
    if link.form == "wikilink":
        assert written.lstrip("!").startswith("[[") and written.endswith("]]"), (link, written)
        assert link.target in written and (link.subpath or "") in written, (link, written)
    elif link.form == "markdown":
        assert written.startswith(f"{mark}[") and written[-1] in ")]", (link, written)
    elif link.form == "blockref":
        assert written.lower() == f"(({link.target}))"
    else:
        assert written.strip("<>") in link.target, (link, written)


def _check_order(found: Sequence[Any], length: int, *, ordered: bool = True) -> None:
    assert all(0 <= item.start < item.end <= length for item in found), found
    if ordered:
        assert [item.start for item in found] == sorted(item.start for item in found), found
