"""Walking a vault as Obsidian does: what is in it, in the order of the state's keys, and what is odd about it.

Names that begin with '.' are no content. Files are told apart into notes (they match `include`) and media (all
others). Nothing outside the root is ever read. A link inside the root is followed only if what it leads to is not
reached under its own name anyway, so that each file is one note; Obsidian ignores the others, too
(help.obsidian.md/symlinks). Order is that of the UTF-8 bytes of whole paths, so that a walk can be merged with a
scan of the state without holding either in memory.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pkm_pipelines.model.globs import Globs
from pkm_pipelines.sources import oddities

Kind = Literal["note", "media"]

# Logseq keeps older versions of each note here; they are no notes of their own.
ALWAYS_EXCLUDED = ("/logseq/bak", "/logseq/version-files", "/logseq/.recycle")


@dataclass(frozen=True, slots=True)
class File:
    """A file that can be read: its path in the source (NFC), where it lies on disk, and how it stands."""

    path: str
    location: str
    stat: os.stat_result
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something at `path` that is not read as a note or medium.

    The path of a folder ends with '/'. What is known of a note at the path, or below that folder, is kept: it
    is out of sight and not gone. `is_told` is false where the walk for the other kind tells of it.
    """

    path: str
    code: str
    detail: str
    is_told: bool


Item = File | Oddity


class Layout:
    """Which paths of a source are notes, which are media, and which are no content."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = Globs(include)
        self._exclude = Globs((*ALWAYS_EXCLUDED, *exclude), below=True)

    def kind(self, path: str) -> Kind | None:
        """What a file at `path` is, None if it is left out; hidden names are the caller's to see."""
        if self._exclude.match(path):
            return None
        return "note" if self._include.match(path) else "media"

    def prunes(self, folder: str) -> bool:
        """Whether everything below `folder` is left out."""
        return self._exclude.covers(folder)

    def shows(self, path: str) -> bool:
        """Whether the walk reaches the file or folder at `path` under this name."""
        is_hidden = path.startswith(".") or "/." in path
        return not is_hidden and not self._exclude.match(path) and not self._exclude.covers(path)


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str  # with '/' at its end, or empty for the root
    location: str
    linked: bool = False  # reached through a link


class Vault:
    """A folder of notes on disk, seen for its notes or for its media."""

    def __init__(self, root: str, layout: Layout, kind: Kind) -> None:
        self.root = os.path.realpath(root)
        self.layout = layout
        self.kind = kind
        self._linked: set[tuple[int, int]] = set()

    def walk(self) -> Iterator[Item]:
        """Every file and oddity, in key order. Raises `OSError` if the root itself cannot be listed."""
        self._linked = set()
        stack: list[Iterator[Item | _Folder]] = [iter(self._list(_Folder("", self.root)))]
        while stack:
            item = next(stack[-1], None)
            if item is None:
                stack.pop()
            elif isinstance(item, _Folder):
                try:
                    stack.append(iter(self._list(item)))
                except OSError as error:
                    yield self._odd(item.path, "unreadable", error.strerror or "")
            else:
                yield item

    def _list(self, folder: _Folder) -> list[Item | _Folder]:
        """What is in one folder, sorted; a placeholder counts only where the file itself is not there, too."""
        found: dict[str, Item | _Folder] = {}
        held: dict[str, Item] = {}
        with os.scandir(folder.location) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)  # the order decides who is a twin's first
        for name, is_twin, entry in _named(listed):
            for item in self._items(folder, name, is_twin, entry):
                if isinstance(item, Oddity) and item.code == "placeholder":
                    held[item.path] = item
                else:
                    found[item.path] = item
        return [item for _, item in sorted({**held, **found}.items())]

    def _items(self, folder: _Folder, name: str, is_twin: bool, entry: os.DirEntry[str]) -> Iterator[Item | _Folder]:
        path = folder.path + name
        try:
            if name.startswith("."):
                if (hidden := oddities.placeholder_of(name, 0)) is not None:
                    yield self._odd(folder.path + hidden, "placeholder")
                return
            if not name.isascii() and not _is_decodable(name):
                yield self._odd(oddities.printable(os.fsencode(path)), "undecodable-name")
            elif entry.is_symlink():
                yield from self._link(folder, path, entry)
            elif entry.is_dir(follow_symlinks=False):
                yield from self._folder(folder, path, is_twin, entry)
            else:
                kind = self.layout.kind(path)
                # To ask how a file stands is what a walk costs, so that is done only for those that are wanted.
                if kind == self.kind or (kind and oddities.placeholder_of(name, 0) is not None):
                    yield from self._file(path, entry.path, entry.stat(follow_symlinks=False), is_twin)
        except FileNotFoundError:
            return  # it went while the folder was listed; the next run sees where it is
        except OSError as error:
            yield self._odd(path, "unreadable", error.strerror or "")

    def _folder(self, parent: _Folder, path: str, is_twin: bool, entry: os.DirEntry[str]) -> Iterator[Item | _Folder]:
        if self.layout.prunes(path):
            return
        if parent.linked and not self._is_first(entry.stat(follow_symlinks=False)):
            yield self._odd(f"{path}/", "symlink-inside", "a folder that is linked more than once")
            return
        if is_twin and self.kind == "note":
            # Sorts before the folder's contents, whose paths begin with this one.
            yield Oddity(path, "name-twin", "", is_told=True)
        yield _Folder(f"{path}/", entry.path, parent.linked)

    def _file(self, path: str, location: str, found: os.stat_result, is_twin: bool) -> Iterator[Item]:
        parent, _, name = path.rpartition("/")
        if not stat.S_ISREG(found.st_mode):
            yield self._odd(path, "not-a-file")
        elif (target := oddities.placeholder_of(name, found.st_size)) is not None:
            yield self._odd(f"{parent}/{target}" if parent else target, "placeholder")
        elif oddities.is_offline(found):
            yield self._odd(path, "placeholder")
        elif oddities.is_conflict_copy(name):
            yield self._odd(path, "conflict-copy")
        elif self.layout.kind(path) == self.kind:
            yield File(path, location, found, "name-twin" if is_twin else None)

    def _link(self, folder: _Folder, path: str, entry: os.DirEntry[str]) -> Iterator[Item | _Folder]:
        try:
            found = entry.stat()
        except OSError as error:
            codes = {errno.ELOOP: "symlink-loop", errno.ENOENT: "symlink-broken", errno.ENOTDIR: "symlink-broken"}
            yield self._odd(path, codes.get(error.errno or 0, "unreadable"), error.strerror or "")
            return
        target = os.path.realpath(entry.path)
        here = os.path.realpath(folder.location)
        if target != self.root and not target.startswith(self.root.rstrip("/") + "/"):
            yield self._odd(path, "symlink-outside")
        elif target == here or here.startswith(target.rstrip("/") + "/"):
            yield self._odd(path, "symlink-loop")
        elif self.layout.shows(name := _printable(target[len(self.root) :].lstrip("/"))) or not self._is_first(found):
            yield self._odd(path, "symlink-inside", name)
        elif not stat.S_ISDIR(found.st_mode):
            yield from self._file(path, target, found, False)
        elif not self.layout.prunes(path):
            yield _Folder(f"{path}/", target, linked=True)

    def _odd(self, path: str, code: str, detail: str = "") -> Oddity:
        kind = "note" if path.endswith("/") else self.layout.kind(path)
        return Oddity(path, code, detail, is_told=kind == self.kind)

    def _is_first(self, found: os.stat_result) -> bool:
        """Whether a file or folder that a link led to is met for the first time; a loop ends here."""
        identity = (found.st_dev, found.st_ino)
        if identity in self._linked:
            return False
        self._linked.add(identity)
        return True


def _is_decodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: str) -> str:
    return unicodedata.normalize("NFC", oddities.printable(os.fsencode(path)))


def _named(entries: list[os.DirEntry[str]]) -> Iterator[tuple[str, bool, os.DirEntry[str]]]:
    """Each entry with its name in NFC, and whether it is the twin of another one.

    Of names that are the same in NFC the one that is in NFC already has it, else the first; a twin keeps its
    own form. macOS hands out NFD for what Linux wrote as NFC (Unicode Standard Annex 15).
    """
    if all(entry.name.isascii() for entry in entries):
        yield from ((entry.name, False, entry) for entry in entries)
        return
    taken = {entry.name for entry in entries if unicodedata.is_normalized("NFC", entry.name)}
    for entry in entries:
        name = unicodedata.normalize("NFC", entry.name)
        if entry.name == name:
            yield name, False, entry
        elif name in taken:
            yield entry.name, True, entry
        else:
            taken.add(name)
            yield name, False, entry
