"""What every source promises, and what it may read of the state.

A source never writes: it yields batches of changes, each with the state writes that say that they were seen. The
one who ingests makes the changes durable and then applies those writes, before it asks for the next batch. So a
kill between two batches leaves a state that is exactly as far as bronze is, and a new source goes on from there.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from pkm_pipelines.model.records import SourceBatch


class StateReader(Protocol):
    """The part of the state that sources read: `storage.slate_client.State` is one."""

    def get(self, key: str) -> bytes | None:
        """The value of `key`, or None."""
        ...

    def get_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The values of those keys that exist."""
        ...

    def scan(
        self, prefix: str, *, start_after: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """All keys that begin with `prefix` and their values, in the order of the keys' UTF-8 bytes."""
        ...


class Source(Protocol):
    """Where notes come from. Every method raises `SourceError` if the source cannot be read as a whole.

    The next batch may only be asked for once the mutations of the one before are applied; a source
    notices when they are not and raises `SourceError`. Two iterations of one source must not overlap.
    A batch may carry mutations and no changes.
    """

    @property
    def name(self) -> str:
        """The source's name in the settings."""
        ...

    @property
    def watched(self) -> Path:
        """The folder whose changes tell that the source has (perhaps) changed."""
        ...

    def notes(self, state: StateReader, now: dt.datetime, *, allow_vanish: bool = False) -> Iterator[SourceBatch]:
        """What has changed since the state was written: `NoteChange`s, observed at `now` (UTC).

        Raises `SourceVanishedError`, before the first batch, if so much is gone that a disk may be missing,
        unless `allow_vanish` says that it may be deleted.
        """
        ...

    def media(self, state: StateReader, now: dt.datetime, *, allow_vanish: bool = False) -> Iterator[SourceBatch]:
        """The same for files that are no notes: `MediaChange`s, whose bytes are read when they are opened."""
        ...

    def history(self, state: StateReader, first_day: dt.date, last_day: dt.date) -> Iterator[SourceBatch]:
        """Every change of the days from `first_day` to `last_day`, both included, UTC, oldest first.

        Raises `SourceError` where the past cannot be observed (a folder).
        """
        ...

    def has_changes(self, state: StateReader) -> bool:
        """Whether `notes` or `media` may have something to say; reads no contents, stops at the first difference."""
        ...

    def fingerprint(self, state: StateReader) -> str:
        """A word that is another one once the source, or how far it has been read, is another."""
        ...

    def folders(self) -> set[str]:
        """The names of the top-level folders, hidden ones included."""
        ...
