"""What differs between a vault on disk and what the state knows of it, from two sorted streams.

A file whose size, mtime and ctime are those that were recorded when it was read is not read again, unless it was
read so soon after it changed that another change would have left the same times ("racily clean", as in git's
Documentation/technical/racy-git). Only differences are held in memory, and never contents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pkm_pipelines.sources import files
from pkm_pipelines.sources.identity import Entry
from pkm_pipelines.sources.vault import File, Item, Oddity

Mark = tuple[int, int, int]

# File systems that keep whole seconds: 1 s (HFS+, old ext) or 2 s (FAT).
_COARSE_NS = 2_000_000_000
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Known:
    """What the state knows of a path: how a note or medium was when it was last read, or only what is odd there.

    `mark` is `files.mark` when the content was read, `failed` the one at which reading did not work. `changed_us`
    is the last change's `changed_at` in microseconds since the epoch. `at` is the path of a parked entry.
    """

    note_id: str | None = None
    hash: str | None = None
    mark: Mark | None = None
    inode: int = 0
    read_ns: int = 0
    version: int = 0
    changed_us: int = 0
    deleted: bool = False
    problems: tuple[str, ...] = ()
    failed: Mark | None = None
    at: str | None = None

    @classmethod
    def load(cls, entry: Entry) -> Known:
        """From the JSON object that the state holds."""
        mark, failed = entry.get("mark"), entry.get("failed")
        return cls(
            note_id=entry.get("id"),
            hash=entry.get("hash"),
            mark=None if mark is None else (mark[0], mark[1], mark[2]),
            inode=entry.get("inode", 0),
            read_ns=entry.get("read", 0),
            version=entry.get("version", 0),
            changed_us=entry.get("changed", 0),
            deleted=entry.get("deleted", False),
            problems=tuple(entry.get("problems", ())),
            failed=None if failed is None else (failed[0], failed[1], failed[2]),
            at=entry.get("at"),
        )

    def dump(self) -> Entry:
        """The JSON object for the state, without what is empty."""
        entry: dict[str, Any] = {
            "id": self.note_id,
            "hash": self.hash,
            "mark": self.mark,
            "inode": self.inode,
            "read": self.read_ns,
            "version": self.version,
            "changed": self.changed_us,
            "deleted": self.deleted,
            "problems": self.problems,
            "failed": self.failed,
            "at": self.at,
        }
        return {key: value for key, value in entry.items() if value}

    @property
    def is_alive(self) -> bool:
        """Whether there is a note or medium here that is not deleted."""
        return self.version > 0 and not self.deleted

    @property
    def is_racy(self) -> bool:
        """Whether the file could have changed after it was read without its times showing it."""
        if self.mark is None:
            return True
        _, mtime, ctime = self.mark
        is_coarse = mtime % _SECOND_NS == 0 and ctime % _SECOND_NS == 0
        newest = max(mtime, ctime) if mtime <= self.read_ns else ctime  # any tool can set mtime, to the future too
        return newest + (_COARSE_NS if is_coarse else files.TICK_NS) >= self.read_ns


@dataclass(frozen=True, slots=True)
class Appeared:
    """A file where there was none; `known` is what is left of an earlier one."""

    file: File
    known: Known | None

    @property
    def path(self) -> str:
        """Where it is."""
        return self.file.path


@dataclass(frozen=True, slots=True)
class Suspect:
    """A file that has to be read to know whether it is still the same."""

    file: File
    known: Known

    @property
    def path(self) -> str:
        """Where it is."""
        return self.file.path


@dataclass(frozen=True, slots=True)
class Vanished:
    """A file that is not where it was; `path` is where its entry stands in the state."""

    path: str
    known: Known


@dataclass(frozen=True, slots=True)
class Odd:
    """A path whose oddity came (`oddity`), went (None), or became another one."""

    path: str
    oddity: Oddity | None
    known: Known | None


Difference = Appeared | Suspect | Vanished | Odd


@dataclass
class Count:
    """How many living notes or media the state knows."""

    alive: int = field(default=0)


def differences(
    items: Iterable[Item],
    known: Iterable[tuple[str, bytes]],
    *,
    max_bytes: int | None = None,
    again: bool = True,
    count: Count | None = None,
) -> Iterator[Difference]:
    """Merge a walk with a scan of the state, both in path order, and yield where they differ.

    Where a note or medium was and now something stands that is read under another name, it vanished; so it does below
    such a folder. Files over `max_bytes` are odd. With `again` false, files that could not be read the last time and
    look the same since are no difference. `count` is filled on the way.
    """
    count = count or Count()
    shields: list[str] = []
    for path, item, raw in _merge(items, known):
        before = Known.load(json.loads(raw.decode())) if raw is not None else None
        if before is not None and before.is_alive:
            count.alive += 1
        if isinstance(item, File) and max_bytes is not None and item.stat.st_size > max_bytes:
            item = Oddity(path, "too-large", str(item.stat.st_size), is_told=True)
        if isinstance(item, Oddity):
            if item.code not in _READ_ANYWAY:
                shields.append(path.rstrip("/") + "/")
            if not item.is_told:
                item = None
        if isinstance(item, Oddity):
            if before is not None and before.is_alive and item.code in _READ_ANYWAY:
                yield Vanished(path, before)
                yield Odd(path, item, replace(before, problems=()))  # that it vanished ends what was odd about it
            elif before is None or before.problems != (item.code,):
                yield Odd(path, item, before)
        elif item is not None:
            if before is None or not before.is_alive:
                if again or before is None or before.failed != files.mark(item.stat):
                    yield Appeared(item, before)
            elif _is_suspect(item, before, again):
                yield Suspect(item, before)
        elif before is not None:
            shields = [shield for shield in shields if path < shield or path.startswith(shield)]
            if any(path.startswith(shield) for shield in shields):
                continue
            if before.is_alive:
                yield Vanished(path, before)
            elif before.problems:
                yield Odd(path, None, before)


def _is_suspect(file: File, known: Known, again: bool) -> bool:
    mark = files.mark(file.stat)
    if known.failed is not None:
        return again or known.failed != mark
    if known.mark != mark or known.is_racy:
        return True
    # What was out of sight (a placeholder, say) is back, though its times never moved.
    return bool(OUT_OF_SIGHT.intersection(known.problems)) or (file.code is not None) != ("name-twin" in known.problems)


# Codes of oddities that hide nothing: what they lead to, or hold, is seen by the walk under its own name.
_READ_ANYWAY = frozenset(("symlink-inside", "name-twin"))

# Codes of oddities that the walk finds in place of a file.
OUT_OF_SIGHT = frozenset(
    (
        "conflict-copy",
        "placeholder",
        "unreadable",
        "too-large",
        "not-a-file",
        "symlink-outside",
        "symlink-inside",
        "symlink-loop",
        "symlink-broken",
    )
)


def _merge(
    items: Iterable[Item], known: Iterable[tuple[str, bytes]]
) -> Iterator[tuple[str, Item | None, bytes | None]]:
    item_stream, known_stream = iter(items), iter(known)
    item, entry = next(item_stream, None), next(known_stream, None)
    while item is not None or entry is not None:
        if entry is None or (item is not None and item.path < entry[0]):
            assert item is not None
            yield item.path, item, None
            item = next(item_stream, None)
        elif item is None or entry[0] < item.path:
            yield entry[0], None, entry[1]
            entry = next(known_stream, None)
        else:
            yield entry[0], item, entry[1]
            item, entry = next(item_stream, None), next(known_stream, None)
