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
from dataclasses import dataclass
from typing import Protocol

from pyiceberg.io import FileIO

from pkm_pipelines.model import keys
from pkm_pipelines.model.progress import Progress
from pkm_pipelines.storage.iceberg_expire import Unneeded
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


@dataclass(frozen=True)
class Doomed:
    """Files that are written down together, under a key of the state, since a moment; `bytes` is their size."""

    key: str
    since: dt.datetime
    files: list[str]
    bytes: int


def doom(state: Notebook, table: str, files: Sequence[Unneeded]) -> None:
    """Write down files that are to be deleted."""
    now = dt.datetime.now(dt.UTC)
    for start in range(0, len(files), _PATHS_AT_ONCE):
        part = files[start : start + _PATHS_AT_ONCE]
        value = {
            "at": now.isoformat(),
            "files": [file.path for file in part],
            "bytes": sum(file.size for file in part),
        }
        state.put(keys.doomed(table, time.time_ns()), json.dumps(value).encode())


def doomed(state: Notebook, table: str) -> Iterator[Doomed]:
    """What is written down, oldest first."""
    for key, value in state.scan(keys.doomed_files(table)):
        found = json.loads(value)
        yield Doomed(key, dt.datetime.fromisoformat(found["at"]), found["files"], found.get("bytes", 0))


def ripe(state: Notebook, table: str, grace: dt.timedelta) -> list[Doomed]:
    """What is written down and whose time of grace is over."""
    limit = dt.datetime.now(dt.UTC) - grace
    return [found for found in doomed(state, table) if found.since <= limit]


def delete_doomed(state: Notebook, io: FileIO, table: str, grace: dt.timedelta, progress: Progress) -> tuple[int, int]:
    """Delete the files whose time of grace is over; returns how many there were, and their bytes."""
    count = size = 0
    for found in ripe(state, table, grace):
        progress.check_cancelled()
        delete_many(io, found.files)
        state.delete(found.key)
        count, size = count + len(found.files), size + found.bytes
        progress.advance(len(found.files))
    return count, size


def delete_many(io: FileIO, paths: Iterable[str]) -> None:
    """Delete files, several at a time; those that are gone already are passed over."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda path: delete_files(io, [path]), paths):
            pass
