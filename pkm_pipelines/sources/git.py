"""A git repository of notes: the branch's newest state, every commit since, and any days of its past.

Everything is told from the index (git_index.py), which each call first brings up to the branch's tip.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import SourceError, SourceVanishedError
from pkm_pipelines.model.records import SourceBatch
from pkm_pipelines.settings import SourceSettings
from pkm_pipelines.sources.base import StateReader
from pkm_pipelines.sources.batches import Batcher, to_datetime
from pkm_pipelines.sources.git_corrections import correct, has_corrections
from pkm_pipelines.sources.git_feed import Feed, Look, MediaFeed, NoteFeed, is_newest, of_entry
from pkm_pipelines.sources.git_index import Index, Record
from pkm_pipelines.sources.git_reset import clear, common_length, truncate
from pkm_pipelines.sources.identity import Entry
from pkm_pipelines.sources.overlay import Overlay
from pkm_pipelines.sources.repository import OID_BYTES, GitRepository
from pkm_pipelines.sources.vault import Layout

# Entries of the state that are held at once.
_ENTRIES = 256


class GitSource:
    """Notes and media of one branch and sub-folder of a repository on disk, read from its objects."""

    def __init__(self, settings: SourceSettings, path: Path, *, batch_notes: int, batch_bytes: int) -> None:
        self.name = settings.name
        self._settings = settings
        self._path = path
        self._layout = Layout(settings.include, settings.exclude)
        self._batch_notes = batch_notes
        self._batch_bytes = batch_bytes

    @property
    def watched(self) -> Path:
        """The repository's own folder, where its references are."""
        return self._open().folder

    def notes(self, state: StateReader, now: dt.datetime, *, allow_vanish: bool = False) -> Iterator[SourceBatch]:
        """The first time each note as its last commit left it; then every commit since."""
        repository, index = yield from self._index(state, now, allow_vanish)
        yield from self._follow(index, NoteFeed(self.name, repository, self._settings.max_note_bytes), now)

    def media(self, state: StateReader, now: dt.datetime, *, allow_vanish: bool = False) -> Iterator[SourceBatch]:
        """The same for files that are no notes."""
        repository, index = yield from self._index(state, now, allow_vanish)
        yield from self._follow(index, MediaFeed(self.name, repository, self._settings.max_media_bytes), now)

    def history(self, state: StateReader, first_day: dt.date, last_day: dt.date) -> Iterator[SourceBatch]:
        """Every change of the commits of those days (by `changed_at`, UTC), both included, oldest first.

        The batches with changes write nothing to the state, so days may be asked for in any order, and twice. A note
        of those days that was deleted on a later one is told with that delete, so that it does not seem alive.
        """
        repository, index = yield from self._index(state, dt.datetime.now(dt.UTC), allow_vanish=False)
        yield from index.begin_backfill()
        feed = NoteFeed(self.name, repository, self._settings.max_note_bytes)
        batcher = self._batcher(None)
        told_of: set[str] = set()
        for record in index.records(index.first_on_or_after(first_day)):
            if to_datetime(record.header.changed_us).date() > last_day:
                break
            for told in feed.of_record(record):
                yield from batcher.room_for(feed.size(told))
                feed.tell(batcher, told, None)
                batcher.done += 1
                told_of.add(told.name)
        for path, entry in index.deleted(sorted(told_of)):
            told = of_entry(path, entry)
            if to_datetime(told.changed_us).date() > last_day:
                yield from batcher.room_for(0)
                feed.tell(batcher, told, None)
        yield from batcher.flush()

    def has_changes(self, state: StateReader) -> bool:
        """Whether the branch's tip is not what was told of last."""
        repository = self._open()
        index = self._open_index(state)
        if index.is_outdated or repository.tip() != index.commit:
            return True
        boundary = index.overlay.cursor.get("boundary")
        if boundary and repository.has_commit(boundary):
            return True
        for content in ("notes", "media"):
            raw = state.get(keys.cursor(f"{self.name}/{content}"))
            cursor = json.loads(raw) if raw else {}
            if "head" in cursor or cursor.get("ordinal", -1) != index.ordinal or has_corrections(index, content):
                return True
        return False

    def fingerprint(self, state: StateReader) -> str:
        """Of the cursors and the branch's tip."""
        names = (self.name, f"{self.name}/notes", f"{self.name}/media")
        cursors = state.get_many([keys.cursor(name) for name in names])
        return hashlib.sha256(repr((sorted(cursors.items()), self._open().tip())).encode()).hexdigest()[:32]

    def folders(self) -> set[str]:
        """The names of the top-level folders of the sub-folder at the branch's tip."""
        repository = self._open()
        tip = repository.tip()
        return (repository.top_folders(tip) if tip else None) or set()

    def _open(self) -> GitRepository:
        return GitRepository(self.name, self._path, self._settings.branch, self._settings.subfolder)

    def _open_index(self, state: StateReader) -> Index:
        settings = self._settings
        shape = json.dumps([settings.subfolder.strip("/"), settings.include, settings.exclude])
        return Index(self.name, state, self._layout, hashlib.sha256(shape.encode()).hexdigest()[:16])

    def _batcher(self, overlay: Overlay | None, total: int | None = None) -> Batcher:
        return Batcher(self.name, overlay, max_changes=self._batch_notes, max_bytes=self._batch_bytes, total=total)

    def _index(
        self, state: StateReader, now: dt.datetime, allow_vanish: bool
    ) -> Generator[SourceBatch, None, tuple[GitRepository, Index]]:
        """Bring the index up to the branch's tip."""
        repository = self._open()
        index = self._open_index(state)
        tip = repository.tip()
        if tip is None or repository.top_folders(tip) is None:
            self._check_vanished(index, repository, tip, allow_vanish)
        if index.is_outdated:
            yield from clear(index)
        if tip is None:
            if index.commit:
                yield from clear(index)
            return repository, index
        boundary = index.overlay.cursor.get("boundary")
        is_deeper = bool(boundary) and repository.has_commit(boundary)
        chain = repository.chain(tip, None if is_deeper else index.commit)
        ids = chain.ids
        if index.commit and not chain.is_continued:
            length = common_length(index, ids)
            yield from truncate(index, length)
            ids = ids[length * OID_BYTES :]
        if not chain.is_continued:
            boundary = chain.boundary
            index.overlay.cursor["boundary"] = boundary
        yield from index.extend(repository, ids, now)
        index.tell_whole(boundary, now)
        yield from index.batcher.flush()
        return repository, index

    def _check_vanished(self, index: Index, repository: GitRepository, tip: str | None, allow_vanish: bool) -> None:
        """A repository without commits or without the sub-folder is a question, if notes of it are known."""
        what = "has no commit" if tip is None else f"has no folder {self._settings.subfolder!r} at {tip}"
        if index.alive and not allow_vanish:
            raise SourceVanishedError(
                f"source {self.name}: {self._path} {what} any more, and {index.alive} notes of it are known. Was the "
                "repository replaced? Nothing was deleted. If the notes are really gone, say so with "
                "`pkm run --accept-deletes`"
            )
        if tip is not None and index.commit is None:
            raise SourceError(f"source {self.name}: {self._path} {what}; check `subfolder` in the settings")

    def _follow(self, index: Index, feed: Feed, now: dt.datetime) -> Iterator[SourceBatch]:
        overlay = Overlay(index.state, keys.cursor(f"{self.name}/{feed.content}"))
        cursor = overlay.cursor
        if "ordinal" not in cursor:
            cursor.update(ordinal=index.ordinal, offset=0, head="")

        def look(path: str) -> Entry | None:
            raw = overlay.get(feed.key(path))
            return json.loads(raw) if raw else None

        batcher = self._batcher(overlay, index.alive if "head" in cursor and feed.content == "notes" else None)
        if "head" in cursor:
            yield from self._tell_head(index, feed, batcher, overlay, look)
        for record in index.records(cursor["ordinal"] + 1):
            yield from self._tell_commit(record, feed, batcher, overlay, look)
        yield from batcher.flush()
        yield from correct(index, feed, self._batcher(index.overlay), now)

    def _tell_head(
        self, index: Index, feed: Feed, batcher: Batcher, overlay: Overlay, look: Look
    ) -> Iterator[SourceBatch]:
        """Each note as its last commit left it; of deleted ones their delete, if changes of the past were told."""
        cursor, prefix = overlay.cursor, feed.key("")
        scan = index.state.scan(prefix, start_after=feed.key(cursor["head"]) if cursor["head"] else None)
        while found := list(islice(scan, _ENTRIES)):
            entries = [(key.removeprefix(prefix), json.loads(value)) for key, value in found]
            for key, value in found:
                overlay.remember(key, value)
            overlay.prefetch(feed.key(entry["from"]) for _, entry in entries if "from" in entry)
            for path, entry in entries:
                if "oid" in entry or (index.is_backfilled and "commit" in entry):
                    told = of_entry(path, entry)
                    yield from batcher.room_for(feed.size(told))
                    feed.tell(batcher, told, look)
                    batcher.done += 1
                cursor["head"] = path
        del cursor["head"]

    def _tell_commit(
        self, record: Record, feed: Feed, batcher: Batcher, overlay: Overlay, look: Look
    ) -> Iterator[SourceBatch]:
        changes = feed.of_record(record)
        offset: int = overlay.cursor["offset"]
        overlay.prefetch(feed.key(told.path) for told in changes[offset:])
        for told in changes[offset:]:
            yield from batcher.room_for(feed.size(told))
            feed.tell(batcher, told, look if is_newest(told, look(told.path)) else None)
            overlay.cursor["offset"] += 1
            batcher.done += 1
        overlay.cursor.update(ordinal=record.ordinal, offset=0)
