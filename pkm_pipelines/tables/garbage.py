"""Files that nothing refers to any more, on their way to being deleted.

A file of an expired snapshot may still be read by somebody who opened the table before. So it is written down in the
state, and deleted when it has been there for a time of grace. Should the state be lost in between, the files are
orphans and found as such.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from pyiceberg.io import FileIO

from pkm_pipelines.model import keys
from pkm_pipelines.model.progress import Progress
from pkm_pipelines.storage.iceberg_writer import delete_files

# Paths under one key of the state, and files deleted at the same time (on S3 a delete is a request).
_PATHS_AT_ONCE = 500
_THREADS = 8


class Notebook(Protocol):
    """Where doomed files are written down; the state."""

    def put(self, key: str, value: bytes) -> None:
        """Set a key."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key."""
        ...

    def scan(
        self, prefix: str, *, start_after: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """The keys that start with `prefix`, in order."""
        ...


def doom(state: Notebook, table: str, paths: Sequence[str]) -> int:
    """Write down files that are to be deleted; returns how many."""
    now = dt.datetime.now(dt.UTC)
    for start in range(0, len(paths), _PATHS_AT_ONCE):
        value = {"at": now.isoformat(), "files": paths[start : start + _PATHS_AT_ONCE]}
        state.put(keys.doomed(table, time.time_ns()), json.dumps(value).encode())
    return len(paths)


def doomed(state: Notebook, table: str) -> Iterator[tuple[str, dt.datetime, list[str]]]:
    """What is written down, oldest first: the key, since when, and the files."""
    for key, value in state.scan(keys.doomed_files(table)):
        found = json.loads(value)
        yield key, dt.datetime.fromisoformat(found["at"]), found["files"]


def delete_doomed(state: Notebook, io: FileIO, table: str, grace: dt.timedelta, progress: Progress) -> int:
    """Delete the files whose time of grace is over; returns how many."""
    limit = dt.datetime.now(dt.UTC) - grace
    count = 0
    for key, since, files in list(doomed(state, table)):
        if since > limit:
            break
        progress.check_cancelled()
        delete_many(io, files)
        state.delete(key)
        count += len(files)
        progress.advance(len(files))
    return count


def delete_many(io: FileIO, paths: Iterable[str]) -> None:
    """Delete files, several at a time; those that are gone already are passed over."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda path: delete_files(io, [path]), paths):
            pass
