"""Which data files a snapshot holds, and which two snapshots do not share.

Manifests never change once they are written, so what was read from one is kept in memory: a merge reads the
manifests once for planning and not again for the commit, and a process that stays warm reads only new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.io import FileIO
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    ManifestContent,
    ManifestEntry,
    ManifestFile,
    read_manifest_list,
)
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.delete_file_index import DeleteFileIndex
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.typedef import Record
from pyiceberg.types import PrimitiveType

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.cache import RecentlyUsed
from pkm_pipelines.storage.iceberg_deletes import read_deletes
from pkm_pipelines.storage.pyiceberg_private import Pruning

CACHED_ENTRIES = 50_000
CACHED_MANIFESTS = 2_000
EVERYTHING = AlwaysTrue()

Partition = tuple[object, ...]


@dataclass(frozen=True)
class LiveFile:
    """A data file of a snapshot, the manifest that lists it and the delete files that apply to it."""

    entry: ManifestEntry
    manifest: ManifestFile
    deletes: tuple[DataFile, ...] = ()

    @property
    def file(self) -> DataFile:
        """The data file."""
        return self.entry.data_file

    @property
    def path(self) -> str:
        """The URL of the data file."""
        return self.entry.data_file.file_path

    @cached_property
    def identity(self) -> tuple[str, ...]:
        """What decides the rows that the file holds: its path and those of its delete files."""
        return (self.path, *sorted(delete.file_path for delete in self.deletes))

    @cached_property
    def partition(self) -> Partition:
        """The partition's values, in the order of the partition spec."""
        return partition_values(self.file.partition)

    @property
    def sequence_number(self) -> int:
        """When the file was added, in the table's own count of commits."""
        return self.entry.sequence_number or 0

    def task(self) -> FileScanTask:
        """What pyiceberg's scan needs to read the file."""
        return FileScanTask(self.file, delete_files=set(self.deletes))


def partition_values(partition: Record) -> Partition:
    """A partition record as a tuple, which is quick to hash and to compare."""
    return tuple(partition[position] for position in range(len(partition)))


def column_bounds(table: Table, file: DataFile, column: str) -> tuple[Any, Any] | None:
    """The least and greatest value that `file` may hold in a column, as Arrow scalars take them; None if unknown."""
    field = table.schema().find_field(column)
    lower = (file.lower_bounds or {}).get(field.field_id)
    upper = (file.upper_bounds or {}).get(field.field_id)
    if lower is None or upper is None or not isinstance(field.field_type, PrimitiveType):
        return None
    return from_bytes(field.field_type, lower), from_bytes(field.field_type, upper)


def manifests_of(table: Table, snapshot: Snapshot | None) -> list[ManifestFile]:
    """The manifests of a snapshot, from memory if they were read before; none for no snapshot."""
    if snapshot is None:
        return []
    path = snapshot.manifest_list
    return list(_LISTS.get(path, lambda: tuple(read_manifest_list(table.io.new_input(path)))))


def entries_of(io: FileIO, manifest: ManifestFile) -> Sequence[ManifestEntry]:
    """The live entries of a manifest, from memory if it was read before."""
    return _ENTRIES.get(manifest.manifest_path, lambda: tuple(manifest.fetch_manifest_entry(io)))


def live_files(table: Table, snapshot: Snapshot | None, row_filter: BooleanExpression = EVERYTHING) -> list[LiveFile]:
    """The data files of `snapshot` that may hold rows matching `row_filter`, by partition and column bounds."""
    return _resolve(table, manifests_of(table, snapshot), row_filter)


def files_between(table: Table, old: Snapshot | None, new: Snapshot | None) -> tuple[list[LiveFile], list[LiveFile]]:
    """The data files that only `old` holds, and those that only `new` holds.

    Of what both share, manifests are not read for nothing: a shared data file is only looked at if a delete file that
    is not shared names it. A file whose delete files differ is in both lists.
    """
    before, after = manifests_of(table, old), manifests_of(table, new)
    shared = {manifest.manifest_path for manifest in before} & {manifest.manifest_path for manifest in after}
    marked = _marked_paths(table, shared, before, after)

    def found(manifests: list[ManifestFile]) -> dict[tuple[str, ...], LiveFile]:
        if not marked:
            manifests = [m for m in manifests if m.manifest_path not in shared or m.content == ManifestContent.DELETES]
        files = _resolve(table, manifests, EVERYTHING, lambda manifest: marked if manifest in shared else None)
        return {file.identity: file for file in files}

    only_old, only_new = found(before), found(after)
    both = only_old.keys() & only_new.keys()
    return (
        [file for identity, file in only_old.items() if identity not in both],
        [file for identity, file in only_new.items() if identity not in both],
    )


def _marked_paths(
    table: Table, shared: set[str], before: Iterable[ManifestFile], after: Iterable[ManifestFile]
) -> set[str]:
    """The data files that are named by a delete file which only one of two snapshots holds."""
    old, new = (
        {
            entry.data_file.file_path: entry.data_file
            for manifest in manifests
            if manifest.content == ManifestContent.DELETES and manifest.manifest_path not in shared
            for entry in entries_of(table.io, manifest)
        }
        for manifests in (before, after)
    )
    differing = [
        file for files, others in ((old, new), (new, old)) for path, file in files.items() if path not in others
    ]
    return {path for file in differing for path in read_deletes(table.io, file)}


def _resolve(
    table: Table,
    manifests: Iterable[ManifestFile],
    row_filter: BooleanExpression,
    only: Callable[[str], Set[str] | None] = lambda _: None,
) -> list[LiveFile]:
    """The live files; `only` says of the path of a data manifest which of its files count, None for all."""
    planner = None if row_filter is EVERYTHING else Pruning(table, row_filter)
    data: list[tuple[ManifestEntry, ManifestFile]] = []
    deletes = DeleteFileIndex()
    for manifest in manifests:
        if planner and not planner.may_hold(manifest):
            continue
        wanted = only(manifest.manifest_path)
        for entry in entries_of(table.io, manifest):
            file = entry.data_file
            if file.content == DataFileContent.DATA:
                if (wanted is None or file.file_path in wanted) and (planner is None or planner.may_match(file)):
                    data.append((entry, manifest))
            elif file.content == DataFileContent.POSITION_DELETES:
                deletes.add_delete_file(entry, partition_key=file.partition)
            else:
                raise StoreError(
                    f"table {'.'.join(table.name())}: {file.file_path} holds equality deletes, which pyiceberg cannot"
                    " read; compact the table with the engine that wrote them"
                )
    if deletes.is_empty():
        return [LiveFile(entry, manifest) for entry, manifest in data]
    return [LiveFile(entry, manifest, _deletes_for(deletes, entry)) for entry, manifest in data]


def _deletes_for(deletes: DeleteFileIndex, entry: ManifestEntry) -> tuple[DataFile, ...]:
    file = entry.data_file
    return tuple(deletes.for_data_file(entry.sequence_number or 0, file, partition_key=file.partition))


_ENTRIES: RecentlyUsed[tuple[ManifestEntry, ...]] = RecentlyUsed(CACHED_ENTRIES, len)
_LISTS: RecentlyUsed[tuple[ManifestFile, ...]] = RecentlyUsed(CACHED_MANIFESTS, len)
