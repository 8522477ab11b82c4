"""Letting go of snapshots, and finding the files that only they held.

The catalog lets go of the snapshots in one commit; the files are looked for after it, in the manifests that no
snapshot has any more. So a process that is killed in between leaves files that nothing refers to, and never a
snapshot without its files. A commit that lands meanwhile is built on a snapshot that was kept, and can refer to no
file that only expired ones held.

pyiceberg takes refs to an expired snapshot away with it, without a word. Where the catalog checks requirements in this
process (SQL, Glue) one of our own looks, in the same atomic step, whether any ref or newer snapshot needs what
goes. A REST catalog knows only the requirements of the specification: there every known ref must be where it was,
and a tag that is set to an expiring snapshot in the same instant cannot be noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io import FileIO
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import (
    RemovePropertiesUpdate,
    RemoveSnapshotsUpdate,
    SetPropertiesUpdate,
    TableRequirement,
    TableUpdate,
    ValidatableTableRequirement,
)

from pkm_pipelines.storage.iceberg_history import ANCESTRY, expired_links
from pkm_pipelines.storage.iceberg_manifests import entries_of, manifests_of
from pkm_pipelines.storage.iceberg_snapshot import assert_ref
from pkm_pipelines.storage.iceberg_update import Change

# Paths of files that are compared at once; each takes some hundred bytes.
_AT_ONCE = 200_000
# Files that are asked for their size at the same time.
_THREADS = 8


class NothingNeeds(ValidatableTableRequirement):
    """A requirement: the snapshots exist, no ref points to one, and nothing new was built on one."""

    type: str = "pkm-nothing-needs"
    snapshot_ids: frozenset[int]
    known: frozenset[int]

    def validate(self, base_metadata: TableMetadata | None) -> None:
        """Raise pyiceberg's error for a commit that has to be planned again."""
        if base_metadata is None:
            raise CommitFailedException("the table is gone")
        held = {ref.snapshot_id for ref in base_metadata.refs.values()}
        present = {snapshot.snapshot_id for snapshot in base_metadata.snapshots}
        parents = {s.parent_snapshot_id for s in base_metadata.snapshots if s.snapshot_id not in self.known}
        if self.snapshot_ids & (held | parents) or not self.snapshot_ids <= present:
            raise CommitFailedException("a snapshot that was to expire is needed, or gone already")


def expiring(table: Table, expired: Sequence[Snapshot], *, cut: Set[int] = frozenset()) -> Change:
    """The catalog's change that lets go of these snapshots and remembers what the others descend from.

    Over the snapshots of `cut` no ancestry is remembered.
    """
    if not expired:
        return Change()
    ids = frozenset(snapshot.snapshot_id for snapshot in expired)
    updates: list[TableUpdate] = [RemoveSnapshotsUpdate.model_validate({"snapshot-ids": sorted(ids)})]
    links = links_without(table, ids, cut)
    if links != expired_links(table):
        text = ",".join(f"{child}:{ancestor}" for child, ancestor in sorted(links.items()))
        updates.append(
            SetPropertiesUpdate(updates={ANCESTRY: text}) if links else RemovePropertiesUpdate(removals=[ANCESTRY])
        )
    if isinstance(table.catalog, RestCatalog):
        return Change(updates, [assert_ref(table, name) for name in table.metadata.refs])
    known = frozenset(snapshot.snapshot_id for snapshot in table.metadata.snapshots)
    return Change(updates, [cast(TableRequirement, NothingNeeds(snapshot_ids=ids, known=known))])


def links_without(table: Table, expired: Set[int], cut: Set[int] = frozenset()) -> dict[int, int]:
    """The links that the table's other snapshots need, once these have expired."""
    before = expired_links(table)
    known = {snapshot.snapshot_id: snapshot for snapshot in table.metadata.snapshots}
    parents = {
        number: snapshot.parent_snapshot_id if snapshot.parent_snapshot_id in known else before.get(number)
        for number, snapshot in known.items()
    }
    found: dict[int, int] = {}
    for child in known.keys() - expired:
        ancestor = parents[child]
        while ancestor is not None and ancestor in expired:
            ancestor = None if ancestor in cut else parents.get(ancestor)
        if ancestor is not None and ancestor in known and ancestor != known[child].parent_snapshot_id:
            found[child] = ancestor
    return found


class Unneeded(NamedTuple):
    """A file that no living snapshot needs; its size is in bytes, 0 if it is gone already."""

    path: str
    size: int


def unreachable_files(
    table: Table, expired: Sequence[Snapshot], before: TableMetadata | None = None
) -> Iterator[list[Unneeded]]:
    """The files that only `expired` snapshots hold, some at a time.

    `table` is as it is after they were let go, and `before` its metadata until then; without that they are still there,
    and the answer is what there would be.

    Data and delete files come before the manifests that name them, and these before the manifest lists: whoever is
    interrupted while deleting in this order can ask again. Only manifests that no living snapshot has are read for what
    to delete; of the living ones those that are old enough to name the same files, for what to keep.
    """
    ids = {snapshot.snapshot_id for snapshot in expired}
    kept = [snapshot for snapshot in table.metadata.snapshots if snapshot.snapshot_id not in ids]
    alive: dict[str, ManifestFile] = {}
    for snapshot in kept:
        alive |= {manifest.manifest_path: manifest for manifest in manifests_of(table, snapshot)}
    dead: dict[str, ManifestFile] = {}
    for snapshot in expired:
        for manifest in _manifests(table, snapshot):
            if manifest.manifest_path not in alive:
                dead[manifest.manifest_path] = manifest
    for files, first in _files_of(table.io, dead.values()):
        for manifest in alive.values():
            if not files:
                break
            # A manifest that is older than a file cannot name it (specification: sequence number inheritance).
            if manifest.sequence_number >= first:
                for entry in entries_of(table.io, manifest):
                    files.pop(entry.data_file.file_path, None)
        yield sorted(Unneeded(path, size) for path, size in files.items())
    yield sorted(Unneeded(path, manifest.manifest_length) for path, manifest in dead.items())
    yield _measured(
        table.io, {snapshot.manifest_list for snapshot in expired} - {snapshot.manifest_list for snapshot in kept}
    )
    left = _statistics(table.metadata) if before else _statistics(table.metadata, without=ids)
    yield sorted(_statistics(before or table.metadata) - left)


def _measured(io: FileIO, paths: Iterable[str]) -> list[Unneeded]:
    """Files of which nothing says how large they are: they are asked, several at a time."""

    def measure(path: str) -> Unneeded:
        try:
            return Unneeded(path, len(io.new_input(path)))
        except FileNotFoundError:
            return Unneeded(path, 0)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(measure, sorted(paths)))


def _files_of(io: FileIO, manifests: Iterable[ManifestFile]) -> Iterator[tuple[dict[str, int], int]]:
    """Files that manifests name with their sizes, so many at a time, and the least sequence number among them."""
    found: dict[str, int] = {}
    first: int | None = None
    for manifest in manifests:
        try:
            entries = entries_of(io, manifest)
        except FileNotFoundError:  # deleted by somebody who was interrupted after it
            continue
        for entry in entries:
            found[entry.data_file.file_path] = entry.data_file.file_size_in_bytes
            number = entry.sequence_number or 0
            first = number if first is None else min(first, number)
        if len(found) >= _AT_ONCE:
            yield found, first or 0
            found, first = {}, None
    if found:
        yield found, first or 0


def _manifests(table: Table, snapshot: Snapshot) -> list[ManifestFile]:
    try:
        return manifests_of(table, snapshot)
    except FileNotFoundError:
        return []


def _statistics(metadata: TableMetadata, without: Set[int] = frozenset()) -> set[Unneeded]:
    files: Mapping[str, Sequence[Any]] = {
        "table": metadata.statistics,
        "partition": metadata.partition_statistics,
    }
    return {
        Unneeded(str(file.statistics_path), file.file_size_in_bytes)
        for kind in files.values()
        for file in kind
        if file.snapshot_id not in without
    }
