"""What Logseq writes differently: properties as `key:: value`, tags as `#[[two words]]`, references to blocks.

A Logseq page is a list; its properties stand in lines of their own, of the page before the first bullet or
of a block inside one. They arrive here already cut out of the Markdown (see `masking`). A page is called
what its file is called, with `___` or `%2F` for the '/' of a namespace.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from urllib.parse import unquote

from pkm_pipelines.knowledge.linktext import find_wikilinks, parse_wikilink
from pkm_pipelines.knowledge.masking import Property
from pkm_pipelines.knowledge.note import Block, Json, Link, ParsedNote, Tag
from pkm_pipelines.knowledge.outline import Outline
from pkm_pipelines.knowledge.tags import find_tags

_LIST_KEYS = {"tags": "tags", "tag": "tags", "alias": "aliases", "aliases": "aliases"}
_BLOCK_REFERENCE = re.compile(r"\(\(([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\)\)")
_EMBED_MACRO = re.compile(r"\{\{embed[ \t]{1,8}$")
_MACRO = re.compile(r"\{\{[^{}\n]*\}\}")
_LIST_ITEM = re.compile(r"\s*(?:#?\[\[([^\[\]]+)\]\]|([^,，]+))")
_PRIORITIES = ("[#A]", "[#B]", "[#C]")


def page_name(path: str) -> str:
    """The name of the page that the file at `path` holds."""
    name = path.rpartition("/")[2].removesuffix(".md")
    return unquote(name.replace("___", "/"))


def enrich(note: ParsedNote, source: str, properties: list[Property], outline: Outline) -> None:
    """Add to a parsed note what only Logseq writes. `source` is the masked text that `outline` was read from."""
    page = _page_properties(properties, outline)
    if page:
        note.front_matter = {**page, **(note.front_matter or {})}
    note.links, tags = _read_links(source, note.links, outline)
    content = note.content.replace("\x00", "\ufffd")
    for name, value, start, end in properties:
        _read_property(content, name, value, start, end, note.links, tags)
    plain_tags = [tag for tag in note.tag_spans if source[max(0, tag.start - 1) : tag.end + 1] not in _PRIORITIES]
    note.tag_spans = sorted(plain_tags + tags, key=_position)
    note.links.sort(key=_position)
    note.block_ids = sorted([*note.block_ids, *_block_ids(properties, outline)], key=_position)
    note.text = _BLOCK_REFERENCE.sub("", _MACRO.sub("", note.text)).strip()


def page_tags(values: dict[str, Json]) -> list[str]:
    """The tags that the properties of a page state; in Logseq a tag may be of several words."""
    stated = values.get("tags")
    words = stated if isinstance(stated, list) else [stated]
    return [word.removeprefix("#") for word in words if isinstance(word, str) and word]


def _page_properties(properties: list[Property], outline: Outline) -> dict[str, Json]:
    """The properties of the page: those before its first bullet. Tags and aliases are lists, the rest is text."""
    first = outline.items[0][0] if outline.items else None
    values: dict[str, Json] = {}
    for name, value, start, _ in properties:
        if first is None or start < first:
            key = _LIST_KEYS.get(name)
            values[key or name] = [*_split_list(value)] if key else value
    return values


def _block_ids(properties: list[Property], outline: Outline) -> list[Block]:
    """The blocks with an `id::`: the list item that the property stands in."""
    starts = [start for start, _ in outline.items]
    found: list[Block] = []
    for name, value, start, _ in properties:
        position = bisect_right(starts, start) if name == "id" and value else 0
        if position:
            found.append(Block(value.lower(), *outline.items[position - 1]))
    return found


def _read_links(source: str, plain: list[Link], outline: Outline) -> tuple[list[Link], list[Tag]]:
    """The links with Logseq's embeds and block references, and the tags that look like links."""
    links: list[Link] = []
    tags: list[Tag] = []
    for link in plain:
        start, end = link.start or 0, link.end or 0
        if link.form == "wikilink" and start and source[start - 1] == "#":
            tags.append(Tag(link.target, start - 1, end))
        else:
            links.append(link._replace(kind="embed") if _is_embedded(source, start) else link)
    for match in _BLOCK_REFERENCE.finditer(source):
        if outline.is_prose(match.start()):
            kind = "embed" if _is_embedded(source, match.start()) else "link"
            links.append(Link(kind, "blockref", match[1].lower(), None, match[0], None, match.start(), match.end()))
    return links, tags


def _read_property(
    content: str, name: str, value: str, start: int, end: int, links: list[Link], tags: list[Tag]
) -> None:
    """The wikilinks and tags in the value of a property.

    Each item of `tags::` is a tag, and each of `alias::` a name, however it is written.
    """
    if _LIST_KEYS.get(name) == "aliases":
        return
    if _LIST_KEYS.get(name) == "tags":
        for match in _LIST_ITEM.finditer(content, start, end):
            item = _item(match)
            if item:
                tag_start = match.start() + len(match[0]) - len(match[0].lstrip())
                tags.append(Tag(item, tag_start, tag_start + len(match[0].strip())))
        return
    for inner, link_start, link_end in find_wikilinks(content, start, end):
        parsed = parse_wikilink(inner)
        if parsed is None:
            continue
        if link_start > start and content[link_start - 1] == "#":
            tags.append(Tag(parsed[0], link_start - 1, link_end))
        else:
            links.append(Link("link", "wikilink", *parsed, name, link_start, link_end))
    tags.extend([Tag(tag, start + tag_start, start + tag_end) for tag, tag_start, tag_end in find_tags(value)])


def _is_embedded(source: str, start: int) -> bool:
    return _EMBED_MACRO.search(source[max(0, start - 16) : start]) is not None


def _split_list(value: str) -> list[str]:
    return [item for match in _LIST_ITEM.finditer(value) if (item := _item(match))]


def _item(match: re.Match[str]) -> str:
    return (match[1] or match[2]).strip().removeprefix("#")


def _position(found: Link | Tag | Block) -> int:
    return found.start or 0
