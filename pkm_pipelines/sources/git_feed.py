"""Telling what the index of a git source holds: notes or media, as changes with their contents.

There are three ways a change is come to: the newest state of each note (the first time), the commits after those that
were told, and corrections after a reset. A change of a commit has the same id whichever way it is told.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

from pkm_pipelines.model import ids, keys
from pkm_pipelines.model.errors import SourceError
from pkm_pipelines.model.records import ChangeType, MediaChange, NoteChange, Problem
from pkm_pipelines.sources import oddities
from pkm_pipelines.sources.batches import Batcher, to_datetime
from pkm_pipelines.sources.git_index import Record
from pkm_pipelines.sources.git_step import Codes
from pkm_pipelines.sources.identity import Entry
from pkm_pipelines.sources.repository import GitRepository, MissingObjectError

# The entry of a path in the index, as it is now.
Look = Callable[[str], Entry | None]

_KINDS: dict[str, ChangeType] = {"I": "INSERT", "U": "UPDATE_AFTER", "D": "DELETE"}
_CHUNK_BYTES = 1 << 20
_MAX_POINTER_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Told:
    """A change that the index knows of, without its content. `name` is the note's id, or the path of a file.

    `commit` is the one whose author and times count. `correction` is set for a change that no commit made; it is then
    part of its id, and `day` is the day of the observation.
    """

    kind: str
    name: str
    path: str
    previous: str | None
    oid: str | None
    commit: str
    ordinal: int
    changed_us: int
    codes: Codes
    correction: str | None = None
    day: dt.date | None = None


class _Feed:
    """What both feeds need: the name of the source, its repository, and how many bytes of a file are kept."""

    def __init__(self, source: str, repository: GitRepository, max_bytes: int) -> None:
        self._source = source
        self._repository = repository
        self._max_bytes = max_bytes
        self._info = lru_cache(maxsize=4096)(repository.commit)


class NoteFeed(_Feed):
    """Tells of notes."""

    content = "notes"

    def key(self, path: str) -> str:
        """Where the state has the entry of a path."""
        return keys.note(self._source, path)

    def of_record(self, record: Record) -> list[Told]:
        """The changes of a commit."""
        return [
            Told(
                kind=change.kind,
                name=change.note_id,
                path=change.path,
                previous=change.previous,
                oid=change.oid,
                commit=record.header.commit,
                ordinal=record.ordinal,
                changed_us=record.header.changed_us,
                codes=change.codes,
            )
            for change in record.notes
        ]

    def size(self, told: Told) -> int:
        """How many bytes of content a change will hold."""
        try:
            size = self._repository.size(told.oid) if told.oid else 0
        except MissingObjectError:
            return 0
        return size if size <= self._max_bytes else 0

    def tell(self, batcher: Batcher, told: Told, look: Look | None) -> None:
        """Add a change to a batch; if it is the newest of its path (`look` is given), tell what is odd there, too."""
        codes, content = list(told.codes), None
        try:
            if told.oid and (size := self._repository.size(told.oid)) > self._max_bytes:
                codes.append(("too-large", str(size)))
            elif told.oid:
                content = self._repository.read(told.oid)
                codes += [(code, "") for code in oddities.content_codes(content)]
                codes += [("lfs-pointer", "")] if oddities.lfs_size(content) is not None else []
        except MissingObjectError:
            codes.append(("missing-object", told.oid or ""))
        problems = batcher.problems(told.path, codes)
        if look:
            _tell_problems(batcher, told, problems, look)
        if told.oid and content is None:
            return
        info = self._info(told.commit) if told.commit else None
        content_hash = None if content is None else ids.sha256(content)
        kind = _KINDS[told.kind]
        batcher.add(
            NoteChange(
                change_id=ids.change_id(self._source, told.correction or told.commit, told.path, kind, content_hash),
                change_type=kind,
                source=self._source,
                note_id=told.name,
                path=told.path,
                previous_path=told.previous,
                changed_at=to_datetime(told.changed_us),
                partition_date=told.day or to_datetime(told.changed_us).date(),
                content=content,
                content_hash=content_hash,
                modified_at=to_datetime(info.authored_us) if info else None,
                commit_id=told.commit or None,
                author=info.author if info else None,
                ordinal=told.ordinal,
                problems=problems,
            )
        )


class MediaFeed(_Feed):
    """Tells of files that are no notes."""

    content = "media"

    def key(self, path: str) -> str:
        """Where the state has the entry of a path."""
        return keys.file(self._source, path)

    def of_record(self, record: Record) -> list[Told]:
        """The changes of a commit."""
        return [
            Told(
                kind=change.kind,
                name=change.path,
                path=change.path,
                previous=None,
                oid=change.oid,
                commit=record.header.commit,
                ordinal=record.ordinal,
                changed_us=record.header.changed_us,
                codes=[],
            )
            for change in record.files
        ]

    def size(self, told: Told) -> int:
        """Nothing: bytes of media are read when they are opened."""
        return 0

    def tell(self, batcher: Batcher, told: Told, look: Look | None) -> None:
        """Add a change to a batch; if it is the newest of its path (`look` is given), tell what is odd there, too."""
        codes, size, opened = list(told.codes), None, None
        try:
            if told.oid:
                size = self._repository.size(told.oid)
                real = oddities.lfs_size(self._repository.read(told.oid)) if size <= _MAX_POINTER_BYTES else None
                if real is not None:
                    size = real
                    codes.append(("lfs-pointer", ""))
                elif size > self._max_bytes:
                    codes.append(("bytes-not-kept", str(size)))
                else:
                    opened = partial(_stream, self._repository, self._source, told.path, told.oid)
        except MissingObjectError:
            codes.append(("missing-object", told.oid or ""))
        problems = batcher.problems(told.path, codes)
        if look:
            _tell_problems(batcher, told, problems, look)
        if told.oid and size is None:
            return
        info = self._info(told.commit) if told.commit else None
        batcher.add(
            MediaChange(
                change_type=_KINDS[told.kind],
                source=self._source,
                path=told.path,
                changed_at=to_datetime(told.changed_us),
                partition_date=told.day or to_datetime(told.changed_us).date(),
                size_bytes=size,
                modified_at=to_datetime(info.authored_us) if info else None,
                # A correction is no commit's change: its time is the version that makes its id its own.
                version=told.changed_us if told.correction else None,
                commit_id=None if told.correction else told.commit,
                ordinal=told.ordinal,
                open=opened,
            )
        )


Feed = NoteFeed | MediaFeed


def of_entry(path: str, entry: Entry) -> Told:
    """The last change of a note or file; of a deleted note that is its delete."""
    return Told(
        kind=entry["kind"],
        name=entry.get("id", path),
        path=entry.get("at", path),
        previous=entry.get("from"),
        oid=entry.get("oid"),
        commit=entry["commit"],
        ordinal=entry["ordinal"],
        changed_us=entry["changed"],
        codes=[(code, detail) for code, detail in entry.get("codes", ())],
    )


def is_newest(told: Told, entry: Entry | None) -> bool:
    """Whether a change of a commit is the last one at its path; `entry` is what stands there now."""
    is_alive = entry is not None and "oid" in entry
    if told.kind == "D":
        return not is_alive
    return entry is not None and is_alive and entry["commit"] == told.commit and entry.get("id", told.path) == told.name


def _tell_problems(batcher: Batcher, told: Told, problems: Iterable[Problem], look: Look) -> None:
    """What was odd about the paths before is over, unless something else stands there now and was told itself."""
    if told.kind != "I" or told.correction:
        for path in {told.path, told.previous or told.path}:
            entry = look(path) or {}
            if "odd" not in entry and ("oid" not in entry or path == told.path):
                batcher.resolve(path)
    batcher.tell(told.path, (), problems)


def _stream(repository: GitRepository, source: str, path: str, oid: str) -> Iterator[bytes]:
    try:
        data = memoryview(repository.read(oid))
    except MissingObjectError:
        raise SourceError(f"source {source}: {path}: git object {oid} is not in the repository any more") from None
    for at in range(0, len(data), _CHUNK_BYTES):
        yield bytes(data[at : at + _CHUNK_BYTES])
