"""Orphans: files in a table's folder that nothing refers to.

Killed writers leave them, refused commits whose files could not be deleted, an expiry that was interrupted. A file
that is being written for a commit to come looks the same, so only what is old enough counts. Files are first
listed and then, one look at the table later, deleted: a file that was committed in between is none.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator

from pkm_pipelines.model.errors import TableNotFoundError
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_listing import References, StoredFile, TableFolder, store_path


class Orphans:
    """The orphans of one table, older than `age`; files that are `spared` (by URL) are none."""

    def __init__(self, store: IcebergStore, name: str, age: dt.timedelta, spared: Collection[str] = ()) -> None:
        self._store = store
        self._name = name
        self._limit = dt.datetime.now(dt.UTC) - age
        table = store.load(name)
        self._spared = {store_path(table.io, url) for url in spared}
        self._folder = TableFolder(table, list(self._locations()))

    def find(self) -> list[StoredFile]:
        """List them; holds the orphans and 8 bytes for every file that is none."""
        before = self._store.load(self._name)
        known = References(before, before.metadata.snapshots)
        found = [
            file
            for file in self._folder.files()
            if file.modified_at < self._limit and file.path not in known and file.path not in self._spared
        ]
        after = self._store.load(self._name)
        if found and after.metadata_location != before.metadata_location:
            seen = {snapshot.snapshot_id for snapshot in before.metadata.snapshots}
            newer = References(after, [s for s in after.metadata.snapshots if s.snapshot_id not in seen])
            found = [file for file in found if file.path not in newer]
        return found

    def delete(self, file: StoredFile) -> bool:
        """Delete one of them; whether it was still there."""
        try:
            self._folder.delete(file.path)
        except FileNotFoundError:
            return False
        return True

    def _locations(self) -> Iterator[str]:
        """Where the other tables of the catalog lie."""
        for name in self._store.names():
            if name != self._name:
                try:
                    yield self._store.load(name).location()
                except TableNotFoundError:  # dropped just now
                    continue
