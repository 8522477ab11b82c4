"""Where a link leads: resolution against the files of a vault, by Obsidian's rules.

A target is matched case-insensitively and in Unicode normal form C, with or without `.md`, as a full path from
the root of the vault or as the end of one; `./`, `../` and a leading `/` fix where it begins. Files that
are no notes need their extension. An alias is a name for people and search: no link resolves through it.

Where several files fit: the one whose path is exactly the target, if the target names a folder; then those in
the folder of the linking note and under it; then the shortest path; then the one spelled as the target is; then
the first path in code point order. So the answer depends on the set of paths only, never on their order.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple
from urllib.parse import unquote

from pkm_pipelines.knowledge.linktext import is_external

Status = Literal["resolved", "broken", "external"]


class Resolution(NamedTuple):
    """Where a link leads: `path` is that of a note or file, a URL, or None where it is broken."""

    status: Status
    path: str | None


class _File(NamedTuple):
    """A file of the vault: its path, the same folded and without `.md`, and whether it had that."""

    path: str
    stem: str
    is_note: bool


_BROKEN = Resolution("broken", None)


def fold(text: str) -> str:
    """The form in which names and paths are compared: NFC, case folded, no-break blanks as blanks."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFC", text).replace("\u00a0", " ").replace("\u202f", " ")
    return unicodedata.normalize("NFC", plain.casefold())


def target_key(target: str) -> str:
    """The name a target is looked up by: its last path segment, folded, without `.md`; empty for a self link.

    A link's resolution depends on the files with this key and on no others, so when files appear, vanish or move,
    the links to look at again are those whose key is among `file_keys` of their paths.
    """
    return fold(target).rpartition("/")[2].removesuffix(".md").strip()


def file_keys(path: str) -> frozenset[str]:
    """The keys of the targets that may lead to the file at `path`.

    One, and a second for a page of a Logseq namespace: `a___b.md` is the page `a/b`.
    """
    key = target_key(path)
    page = _namespace_page(key)
    return frozenset((key,) if page is None else (key, page.rpartition("/")[2]))


def names_of(path: str, title: str | None, aliases: Iterable[str] | None) -> frozenset[str]:
    """Every folded name that an edge to the note at `path` may be looked up by: as a link, or as a mention."""
    names = {fold(name).strip() for name in (title, *(aliases or ())) if name}
    return file_keys(path) | names


class VaultIndex:
    """The files of one vault, notes and others, ready to resolve links between them.

    `blocks` maps ids of Logseq blocks to the path of their note; without it block references are broken.
    """

    def __init__(self, paths: Iterable[str], *, blocks: Mapping[str, str] | None = None):
        self._by_key: dict[str, list[_File]] = {}
        self._by_path: dict[str, list[_File]] = {}
        self._pages: dict[str, list[_File]] = {}
        self._blocks = blocks or {}
        for path in paths:
            self._add(path)

    def _add(self, path: str) -> None:
        folded = fold(path)
        stem = folded.removesuffix(".md")
        file = _File(path, stem, len(stem) < len(folded))
        self._by_key.setdefault(stem.rpartition("/")[2], []).append(file)
        self._by_path.setdefault(stem, []).append(file)
        page = _namespace_page(stem)
        if page is not None:
            self._pages.setdefault(page, []).append(file)

    def resolve(
        self, target: str, subpath: str | None = None, from_path: str = "", *, form: str = "wikilink"
    ) -> Resolution:
        """Resolve the target of a link in the note at `from_path`; `form` is that of `Link`.

        The subpath does not count: a link to a heading that is not there still leads to its note.
        """
        if is_external(target, form):
            return Resolution("external", target)
        if form == "blockref":
            path = self._blocks.get(target)
            return _BROKEN if path is None else Resolution("resolved", path)
        wanted = fold(target).strip()
        if not wanted:
            return Resolution("resolved", from_path) if subpath is not None else _BROKEN
        here = fold(from_path).rpartition("/")[0]
        found = self._candidates(wanted, here)
        if not found:
            return _BROKEN
        if len(found) > 1:
            folder = f"{here}/" if here else ""
            found = [min(found, key=lambda file: _rank(file, wanted, folder, target))]
        return Resolution("resolved", found[0].path)

    def _candidates(self, wanted: str, here: str) -> list[_File]:
        if wanted.startswith(("/", "./", "../")):
            path = _normalise(wanted if wanted.startswith("/") else f"{here}/{wanted}")
            return self._at(path)
        if "/" not in wanted:
            return _fitting(self._by_key.get(wanted.removesuffix(".md"), []), wanted)
        path = _normalise(wanted)
        exact = self._at(path)
        if exact:
            return exact
        suffix = "/" + path.removesuffix(".md")
        same_name = self._by_key.get(suffix.rpartition("/")[2], [])
        ending = _fitting([file for file in same_name if file.stem.endswith(suffix)], path)
        return ending or self._pages.get(path, [])

    def _at(self, path: str) -> list[_File]:
        return _fitting(self._by_path.get(path.removesuffix(".md"), []), path)


def _fitting(files: list[_File], wanted: str) -> list[_File]:
    """Leave out what the extension rules out: `x.md` is never the file `x`."""
    return [file for file in files if file.is_note] if wanted.endswith(".md") else files


def _rank(file: _File, wanted: str, folder: str, target: str) -> tuple[bool, bool, int, bool, str]:
    """How good a candidate is, the least being the best: see the top of this module.

    `x.png` is rather the file of this name than the note `x.png.md`; without an extension it is the other way round.
    """
    has_extension = "." in wanted.rpartition("/")[2].removesuffix(".md")
    as_spelled = unicodedata.normalize("NFC", file.path).removesuffix(".md").endswith(target.removesuffix(".md"))
    return file.is_note == has_extension, not file.stem.startswith(folder), len(file.path), not as_spelled, file.path


def _normalise(path: str) -> str:
    """The path from the root without `.`, `..` and doubled '/'; empty, which no file has, if it leads nowhere."""
    segments: list[str] = []
    if path.rpartition("/")[2] in ("", ".", ".."):  # a folder
        return ""
    for segment in path.split("/"):
        if segment == "..":
            if not segments:
                return ""
            segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    return "/".join(segments)


def _namespace_page(stem: str) -> str | None:
    """The Logseq page that a file holds, if its name has namespaces in it."""
    name = stem.rpartition("/")[2]
    return unquote(name.replace("___", "/")) if "___" in name or "%2f" in name else None
