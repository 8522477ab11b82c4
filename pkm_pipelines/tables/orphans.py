"""Orphans: files in a table's folder that nothing refers to.

Killed writers leave them, refused commits whose files could not be deleted, an expiry that was interrupted. A file
that is being written for a commit to come looks the same, so only what is old enough counts. Files are first
listed and then, one look at the table later, deleted: a file that was committed in between is none.

If another table lies in the folder, which the catalog does not know or no longer, all of its files look like orphans.
Its metadata tells: then nothing is one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator

from pyiceberg.table import Table

from pkm_pipelines.model.errors import StoreError, TableNotFoundError
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_leftovers import is_of_another
from pkm_pipelines.storage.iceberg_listing import References, StoredFile, TableFolder, store_path
from pkm_pipelines.storage.iceberg_register import entry_of

_METADATA = (".metadata.json", ".metadata.json.gz")


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
        """List them; holds the orphans and 8 bytes for every file that is none.

        Raises `StoreError` if the folder holds snapshots of another table.
        """
        before = self._store.load(self._name)
        known = References(before, before.metadata.snapshots)
        found: list[StoredFile] = []
        for file in self._folder.files():
            if file.path in known or file.path in self._spared:
                continue
            self._check_owner(before, file)
            if file.modified_at < self._limit:
                found.append(file)
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

    def _check_owner(self, table: Table, file: StoredFile) -> None:
        """Raise `StoreError` if an unknown file, of any age, is the metadata of another table."""
        location = self._folder.url(file.path)
        if file.path.endswith(_METADATA) and is_of_another(table.io, location, str(table.metadata.table_uuid)):
            raise StoreError(
                f"table {self._name}: another table lies in its folder ({location}), so no file there is taken for an"
                " orphan: `pkm warehouse rebuild-catalog` says how that one is taken back in its place; if nobody wants"
                " it, move its metadata files out of the folder"
            )

    def _locations(self) -> Iterator[str]:
        """Where the other tables of the catalog lie."""
        for name in self._store.names():
            if name != self._name:
                try:
                    yield self._store.load(name).location()
                except TableNotFoundError:  # dropped just now
                    continue
                except StoreError:
                    # Its metadata cannot be read; by its name it lies in the folder `metadata` of the table's own.
                    folder, separator, _ = entry_of(self._store, name).rpartition("/metadata/")
                    if not separator:
                        raise
                    yield folder
