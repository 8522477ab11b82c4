"""Writing one snapshot: its manifests, its manifest list and the catalog update that would make it current.

pyiceberg's own snapshot producers are not used here. They read every touched manifest three times, copy the whole
table metadata some twenty times in a commit (so that latency grows with the number of snapshots), retry by
themselves with the properties of the first attempt, and know neither deletes by position nor `replace`. What is
left to do is little, is written down in the Iceberg specification, and uses pyiceberg's writers for every file.

Sources: https://iceberg.apache.org/spec/ (manifests, snapshots, sequence number inheritance).
"""

from __future__ import annotations

import copy
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    write_manifest,
    write_manifest_list,
)
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, SnapshotSummaryCollector, Summary, update_snapshot_summaries
from pyiceberg.table.update import (
    AddSnapshotUpdate,
    AssertRefSnapshotId,
    AssertTableUUID,
    SetSnapshotRefUpdate,
    TableRequirement,
    TableUpdate,
)
from pyiceberg.typedef import Record

from pkm_pipelines.model.errors import SnapshotNotFoundError
from pkm_pipelines.storage.iceberg_deletes import (
    Positions,
    joined,
    new_delete_path,
    only_file,
    read_deletes,
    write_deletes,
)
from pkm_pipelines.storage.iceberg_manifests import LiveFile, entries_of, manifests_of
from pkm_pipelines.storage.iceberg_writer import delete_files
from pkm_pipelines.storage.pyiceberg_private import DeleteManifestWriter

# Manifests whose number of files is within the same power of this many are of one size; so many of one size are
# merged into one. Each file is thus rewritten into manifests a logarithmic number of times, and a table of n files
# has at most MERGE_FACTOR * log(n) manifests.
MERGE_FACTOR = 8
# So many files that go at once (a compaction) are not listed among those that stay.
MANY_GONE = 64

OperationName = Literal["append", "overwrite", "delete", "replace"]


@dataclass(frozen=True)
class Clustering:
    """Manifests (by path) to write anew, so many files in each, those of one partition beside each other."""

    manifests: frozenset[str] = frozenset()
    files_each: int = 1


@dataclass
class Writes:
    """What one commit changes: files that come and files that go, with the rows that really changed.

    `deletes` are files of deletes by position (`iceberg_deletes.py`). What existing ones say of a data file that goes
    is taken out of them by itself; `removed_deletes` are further ones that go as a whole, for example because one
    of `deletes` says the same. No file at all is a commit that carries only marks. `operation` is Iceberg's word;
    `replace` says that the rows stay the same (compaction). `clustering` writes manifests anew and changes no file.
    """

    added: Sequence[DataFile] = ()
    removed: Sequence[LiveFile] = ()
    deletes: Sequence[DataFile] = ()
    removed_deletes: Sequence[DataFile] = ()
    clustering: Clustering = Clustering()
    operation: OperationName = "append"
    rows_added: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes_nothing(self) -> bool:
        """Whether no file comes or goes, and no manifest."""
        return not (self.added or self.removed or self.deletes or self.removed_deletes or self.clustering.manifests)

    @property
    def paths(self) -> set[str]:
        """The files that come."""
        return {file.file_path for file in (*self.added, *self.deletes)}


@dataclass(frozen=True)
class PreparedSnapshot:
    """A snapshot that is written but not yet current: what to ask of the catalog, and the files made for it."""

    snapshot: Snapshot
    updates: tuple[TableUpdate, ...]
    requirements: tuple[TableRequirement, ...]
    files: tuple[str, ...]


def prepare_snapshot(
    table: Table, writes: Writes, properties: Mapping[str, str], branch: str = MAIN_BRANCH
) -> PreparedSnapshot:
    """Write the manifests and the manifest list of a snapshot whose parent is the table's current one.

    For another branch than `main`, `table` must be as `seen_from` that branch. The catalog will refuse it if the branch
    has moved by then, so no conflict has to be looked for: the caller plans the whole operation again. Times of
    snapshots are made strictly increasing, so that AS OF has one answer.
    """
    metadata = table.metadata
    parent = metadata.current_snapshot()
    writer = _ManifestWriting(table)
    try:
        changes = writer.settle(writes)
        manifests = writer.write(changes, manifests_of(table, parent), writes.clustering)
        manifest_list = writer.write_list(manifests, parent)
    except BaseException:
        delete_files(table.io, writer.written)
        raise
    snapshot = Snapshot.model_validate(
        {
            "snapshot-id": writer.snapshot_id,
            "parent-snapshot-id": parent.snapshot_id if parent else None,
            "sequence-number": metadata.next_sequence_number(),
            "timestamp-ms": max(int(time.time() * 1000), parent.timestamp_ms + 1 if parent else 0),
            "manifest-list": manifest_list,
            "summary": _summary(table, changes, writes.operation, properties, parent),
            "schema-id": metadata.current_schema_id,
        }
    )
    return PreparedSnapshot(
        snapshot,
        (AddSnapshotUpdate(snapshot=snapshot), set_ref(branch, snapshot.snapshot_id, SnapshotRefType.BRANCH)),
        (assert_ref(table, branch),),
        tuple(writer.written),
    )


def seen_from(table: Table, branch: str) -> Table:
    """The table with the head of `branch` as its current snapshot; raises `SnapshotNotFoundError` for no branch."""
    if branch == MAIN_BRANCH:
        return table
    ref = table.metadata.refs.get(branch)
    if ref is None or ref.snapshot_ref_type != SnapshotRefType.BRANCH:
        known = [name for name, ref in table.metadata.refs.items() if ref.snapshot_ref_type == SnapshotRefType.BRANCH]
        raise SnapshotNotFoundError(
            f"table {'.'.join(table.name())} has no branch {branch!r} (there are: {', '.join(sorted(known)) or 'none'})"
        )
    seen = copy.copy(table)
    seen.metadata = table.metadata.model_copy(update={"current_snapshot_id": ref.snapshot_id})
    return seen


def set_ref(name: str, snapshot_id: int, kind: SnapshotRefType | None = None) -> SetSnapshotRefUpdate:
    """Point a branch or tag to a snapshot: by default the branch `main`, or the tag of any other name."""
    kind = kind or (SnapshotRefType.BRANCH if name == MAIN_BRANCH else SnapshotRefType.TAG)
    return SetSnapshotRefUpdate.model_validate({"ref-name": name, "type": kind.value, "snapshot-id": snapshot_id})


def assert_ref(table: Table, name: str) -> AssertRefSnapshotId:
    """The requirement that a branch or tag is still what it was when `table` was loaded."""
    ref = table.metadata.refs.get(name)
    return AssertRefSnapshotId.model_validate({"ref": name, "snapshot-id": ref.snapshot_id if ref else None})


def ask_catalog(table: Table, updates: Sequence[TableUpdate], requirements: Sequence[TableRequirement]) -> None:
    """Ask the catalog for a change of the table, if it is still this table and the requirements hold.

    What is not kept of the log of metadata files is deleted, if the table's properties say so. An exception other than
    pyiceberg's `CommitFailedException` leaves open whether the change was made.
    """
    same_table = AssertTableUUID(uuid=table.metadata.table_uuid)
    response = table.catalog.commit_table(table, (same_table, *requirements), tuple(updates))
    if table.properties.get(TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED) == "true":
        kept = {entry.metadata_file for entry in response.metadata.metadata_log}
        log = [entry.metadata_file for entry in table.metadata.metadata_log]
        delete_files(table.io, [file for file in log if file not in kept])


@dataclass(frozen=True)
class _Changes:
    """The files that come and go with a snapshot, delete files among them."""

    added: Sequence[DataFile]
    removed: Sequence[LiveFile]
    removed_deletes: Sequence[DataFile]


class _ManifestWriting:
    """The manifest files of one snapshot."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._metadata = table.metadata
        self._specs = self._metadata.specs()
        self._commit = uuid.uuid4()
        self.snapshot_id = self._metadata.new_snapshot_id()
        self.written: list[str] = []

    def settle(self, writes: Writes) -> _Changes:
        """What really comes and goes: no position of a data file that goes stays in any delete file.

        So the number of deleted rows in the summary is exact, and reads do not apply what no longer applies.
        """
        gone = {file.path for file in writes.removed}
        whole = {file.file_path for file in writes.removed_deletes}
        applied = {
            delete.file_path: delete
            for file in writes.removed
            for delete in file.deletes
            if delete.file_path not in whole
        }
        removed: list[DataFile] = [*writes.removed_deletes]
        left: dict[tuple[int, Record], list[Positions]] = defaultdict(list)
        for delete in applied.values():
            if only_file(delete) in gone:
                removed.append(delete)
                continue
            positions = read_deletes(self._table.io, delete)
            rest = {path: array for path, array in positions.items() if path not in gone}
            if len(rest) < len(positions):
                removed.append(delete)
                if rest:
                    left[delete.spec_id, delete.partition].append(rest)
        rewritten: list[DataFile] = []
        for (spec_id, partition), parts in left.items():
            self.written.append(new_delete_path(self._table))
            rewritten.append(write_deletes(self._table, self.written[-1], joined(parts), spec_id, partition))
        return _Changes([*writes.added, *writes.deletes, *rewritten], writes.removed, removed)

    def write(self, changes: _Changes, existing: Iterable[ManifestFile], clustering: Clustering) -> list[ManifestFile]:
        """All manifests of the new snapshot: a manifest that loses files is rewritten, small ones are merged."""
        gone = {
            ManifestContent.DATA: {file.path for file in changes.removed},
            ManifestContent.DELETES: {file.file_path for file in changes.removed_deletes},
        }
        entries: dict[tuple[ManifestContent, int], list[ManifestEntry]] = defaultdict(list)
        touched = {file.manifest.manifest_path for file in changes.removed}
        for file in changes.added:
            entries[_content(file), file.spec_id].append(_entry(ManifestEntryStatus.ADDED, self.snapshot_id, file))
        kept: list[ManifestFile] = []
        scattered: dict[tuple[ManifestContent, int], list[ManifestEntry]] = defaultdict(list)
        for manifest in existing:
            missing = gone[manifest.content]
            may_lose = manifest.manifest_path in touched or (manifest.content == ManifestContent.DELETES and missing)
            found = entries_of(self._table.io, manifest) if may_lose else ()
            if any(entry.data_file.file_path in missing for entry in found):
                for entry in found:
                    file = entry.data_file
                    if file.file_path in missing:
                        missing.remove(file.file_path)
                        changed = _entry(ManifestEntryStatus.DELETED, self.snapshot_id, file, entry)
                    else:
                        changed = _entry(ManifestEntryStatus.EXISTING, entry.snapshot_id, file, entry)
                    entries[manifest.content, manifest.partition_spec_id].append(changed)
            elif manifest.manifest_path in clustering.manifests:
                scattered[manifest.content, manifest.partition_spec_id] += [
                    _entry(ManifestEntryStatus.EXISTING, entry.snapshot_id, entry.data_file, entry)
                    for entry in entries_of(self._table.io, manifest)
                ]
            elif manifest.has_added_files() or manifest.has_existing_files():
                kept.append(manifest)
        if lost := set[str]().union(*gone.values()):
            raise ValueError(f"not in the parent snapshot: {', '.join(sorted(lost))}")
        new = [
            self._write_manifest(content, spec, part)
            for (content, spec), group in sorted(entries.items())
            for part in _apart(group)
        ]
        for (content, spec), group in sorted(scattered.items()):
            group.sort(key=_place)
            for start in range(0, len(group), clustering.files_each):
                new.append(self._write_manifest(content, spec, group[start : start + clustering.files_each]))
        return new + self._merge_small(kept)

    def write_list(self, manifests: list[ManifestFile], parent: Snapshot | None) -> str:
        """Write the manifest list; returns its URL."""
        path = self._new_path(f"snap-{self.snapshot_id}-0-{self._commit}.avro")
        with write_manifest_list(
            format_version=self._metadata.format_version,
            output_file=self._table.io.new_output(path),
            snapshot_id=self.snapshot_id,
            parent_snapshot_id=parent.snapshot_id if parent else None,
            sequence_number=self._metadata.next_sequence_number(),
            avro_compression="deflate",
        ) as writer:
            writer.add_manifests(manifests)
        return path

    def _merge_small(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        sizes: dict[tuple[ManifestContent, int, int], list[ManifestFile]] = defaultdict(list)
        for manifest in manifests:
            files = (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)
            size = int(math.log(max(files, 1), MERGE_FACTOR))
            sizes[manifest.content, manifest.partition_spec_id, size].append(manifest)
        merged: dict[str, ManifestFile | None] = {}
        for (content, spec, _), group in sizes.items():
            if len(group) >= MERGE_FACTOR:
                entries = [
                    _entry(ManifestEntryStatus.EXISTING, entry.snapshot_id, entry.data_file, entry)
                    for manifest in group
                    for entry in entries_of(self._table.io, manifest)
                ]
                merged |= dict.fromkeys((manifest.manifest_path for manifest in group), None)
                merged[group[0].manifest_path] = self._write_manifest(content, spec, entries)
        result = [merged.get(manifest.manifest_path, manifest) for manifest in manifests]
        return [manifest for manifest in result if manifest is not None]

    def _write_manifest(self, content: ManifestContent, spec_id: int, entries: Iterable[ManifestEntry]) -> ManifestFile:
        output = self._table.io.new_output(self._new_path(f"{self._commit}-m{len(self.written)}.avro"))
        spec, schema = self._specs[spec_id], self._metadata.schema()
        if content == ManifestContent.DELETES:
            manifest = DeleteManifestWriter(spec, schema, output, self.snapshot_id, "deflate")
        else:
            manifest = write_manifest(self._metadata.format_version, spec, schema, output, self.snapshot_id, "deflate")
        with manifest as writer:
            for entry in entries:
                writer.add_entry(entry)
        return writer.to_manifest_file()

    def _new_path(self, name: str) -> str:
        path = self._table.location_provider().new_metadata_location(name)
        self.written.append(path)
        return path


def _apart(entries: Sequence[ManifestEntry]) -> Iterator[Sequence[ManifestEntry]]:
    """Entries of files that go, where they are many, in a manifest of their own: the next commit lets go of it."""
    gone = [entry for entry in entries if entry.status == ManifestEntryStatus.DELETED]
    stays = [entry for entry in entries if entry.status != ManifestEntryStatus.DELETED]
    yield from (gone, stays) if stays and len(gone) >= MANY_GONE else (entries,)


def _place(entry: ManifestEntry) -> tuple[object, ...]:
    """Where a file lies: its partition's values, null before everything, then its path."""
    partition = entry.data_file.partition
    values = [partition[position] for position in range(len(partition))]
    return (*((value is not None, value if value is not None else 0) for value in values), entry.data_file.file_path)


def _content(file: DataFile) -> ManifestContent:
    return ManifestContent.DATA if file.content == DataFileContent.DATA else ManifestContent.DELETES


def _entry(
    status: ManifestEntryStatus, snapshot_id: int | None, file: DataFile, inherited: ManifestEntry | None = None
) -> ManifestEntry:
    """A manifest entry: an old file keeps its sequence numbers, a new one gets the snapshot's when it is read."""
    return ManifestEntry.from_args(
        status=status,
        snapshot_id=snapshot_id,
        sequence_number=inherited.sequence_number if inherited else None,
        file_sequence_number=inherited.file_sequence_number if inherited else None,
        data_file=file,
    )


def _summary(
    table: Table, changes: _Changes, operation: OperationName, properties: Mapping[str, str], parent: Snapshot | None
) -> Summary:
    metadata = table.metadata
    schema, specs = metadata.schema(), metadata.specs()
    collector = SnapshotSummaryCollector()
    for file in changes.added:
        collector.add_file(file, schema, specs[file.spec_id])
    for file in (*(live.file for live in changes.removed), *changes.removed_deletes):
        collector.remove_file(file, schema, specs[file.spec_id])
    # pyiceberg adds up the totals of every operation but `replace`.
    counted = Operation.OVERWRITE if operation == "replace" else Operation(operation)
    summary = update_snapshot_summaries(
        Summary(operation=counted, **collector.build(), **properties), parent.summary if parent else None
    )
    if operation == "replace":
        return Summary(operation=Operation.REPLACE, **summary.additional_properties)
    return summary
