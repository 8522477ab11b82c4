"""Writing one snapshot: its manifests, its manifest list and the catalog update that would make it current.

pyiceberg's own snapshot producers are not used here. They read every touched manifest three times, copy the whole
table metadata some twenty times in a commit (so that latency grows with the number of snapshots), retry by
themselves with the properties of the first attempt, and know neither deletes by position nor `replace`. What is
left to do is little, is written down in the Iceberg specification, and uses pyiceberg's writers for every file.

Sources: https://iceberg.apache.org/spec/ (manifests, snapshots, sequence number inheritance).
"""

from __future__ import annotations

import math
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyiceberg.manifest import (
    DataFile,
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

from pkm_pipelines.storage.iceberg_manifests import LiveFile, entries_of, manifests_of
from pkm_pipelines.storage.iceberg_writer import delete_files

# Manifests whose number of files is within the same power of this many are of one size; so many of one size are
# merged into one. Each file is thus rewritten into manifests a logarithmic number of times, and a table of n files
# has at most MERGE_FACTOR * log(n) manifests.
MERGE_FACTOR = 8

OperationName = Literal["append", "overwrite", "delete", "replace"]


@dataclass
class Writes:
    """What one commit changes: data files that come and data files that go, with the rows that really changed.

    No file at all is a commit that carries only marks. `operation` is Iceberg's word; `replace` says that the rows
    stay the same (compaction).
    """

    added: Sequence[DataFile] = ()
    removed: Sequence[LiveFile] = ()
    operation: OperationName = "append"
    rows_added: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes_nothing(self) -> bool:
        """Whether no file comes or goes."""
        return not self.added and not self.removed


@dataclass(frozen=True)
class PreparedSnapshot:
    """A snapshot that is written but not yet current: what to ask of the catalog, and the files made for it."""

    snapshot: Snapshot
    updates: tuple[TableUpdate, ...]
    requirements: tuple[TableRequirement, ...]
    files: tuple[str, ...]


def prepare_snapshot(table: Table, writes: Writes, properties: Mapping[str, str]) -> PreparedSnapshot:
    """Write the manifests and the manifest list of a snapshot whose parent is the table's current one.

    The catalog will refuse it if `main` has moved by then, so no conflict has to be looked for: the caller plans
    the whole operation again. Times of snapshots are made strictly increasing, so that AS OF has one answer.
    """
    metadata = table.metadata
    parent = metadata.current_snapshot()
    writer = _ManifestWriting(table)
    try:
        manifest_list = writer.write_list(writer.write(writes, manifests_of(table, parent)), parent)
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
            "summary": _summary(table, writes, properties, parent),
            "schema-id": metadata.current_schema_id,
        }
    )
    return PreparedSnapshot(
        snapshot,
        (AddSnapshotUpdate(snapshot=snapshot), set_ref(MAIN_BRANCH, snapshot.snapshot_id)),
        (assert_ref(table, MAIN_BRANCH),),
        tuple(writer.written),
    )


def set_ref(name: str, snapshot_id: int) -> SetSnapshotRefUpdate:
    """Point the branch `main`, or the tag of any other name, to a snapshot."""
    kind = SnapshotRefType.BRANCH if name == MAIN_BRANCH else SnapshotRefType.TAG
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


class _ManifestWriting:
    """The manifest files of one snapshot."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._metadata = table.metadata
        self._specs = self._metadata.specs()
        self._commit = uuid.uuid4()
        self.snapshot_id = self._metadata.new_snapshot_id()
        self.written: list[str] = []

    def write(self, writes: Writes, existing: Iterable[ManifestFile]) -> list[ManifestFile]:
        """All manifests of the new snapshot: a manifest that loses files is rewritten, small ones are merged."""
        gone = {file.path for file in writes.removed}
        touched = {file.manifest.manifest_path for file in writes.removed}
        entries: dict[int, list[ManifestEntry]] = defaultdict(list)
        for file in writes.added:
            entries[file.spec_id].append(_entry(ManifestEntryStatus.ADDED, self.snapshot_id, file))
        kept: list[ManifestFile] = []
        for manifest in existing:
            if manifest.manifest_path in touched:
                touched.remove(manifest.manifest_path)
                for entry in entries_of(self._table.io, manifest):
                    file = entry.data_file
                    if file.file_path in gone:
                        gone.remove(file.file_path)
                        changed = _entry(ManifestEntryStatus.DELETED, self.snapshot_id, file, entry)
                    else:
                        changed = _entry(ManifestEntryStatus.EXISTING, entry.snapshot_id, file, entry)
                    entries[manifest.partition_spec_id].append(changed)
            elif manifest.has_added_files() or manifest.has_existing_files():
                kept.append(manifest)
        if gone:
            raise ValueError(f"not in the parent snapshot: {', '.join(sorted(gone))}")
        new = [self._write_manifest(spec, group) for spec, group in sorted(entries.items())]
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
        sizes: dict[tuple[int, int], list[ManifestFile]] = defaultdict(list)
        for manifest in manifests:
            if manifest.content == ManifestContent.DATA:
                files = (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)
                sizes[manifest.partition_spec_id, int(math.log(max(files, 1), MERGE_FACTOR))].append(manifest)
        merged: dict[str, ManifestFile | None] = {}
        for (spec, _), group in sizes.items():
            if len(group) >= MERGE_FACTOR:
                entries = [
                    _entry(ManifestEntryStatus.EXISTING, entry.snapshot_id, entry.data_file, entry)
                    for manifest in group
                    for entry in entries_of(self._table.io, manifest)
                ]
                merged |= dict.fromkeys((manifest.manifest_path for manifest in group), None)
                merged[group[0].manifest_path] = self._write_manifest(spec, entries)
        result = [merged.get(manifest.manifest_path, manifest) for manifest in manifests]
        return [manifest for manifest in result if manifest is not None]

    def _write_manifest(self, spec_id: int, entries: Iterable[ManifestEntry]) -> ManifestFile:
        path = self._new_path(f"{self._commit}-m{len(self.written)}.avro")
        with write_manifest(
            format_version=self._metadata.format_version,
            spec=self._specs[spec_id],
            schema=self._metadata.schema(),
            output_file=self._table.io.new_output(path),
            snapshot_id=self.snapshot_id,
            avro_compression="deflate",
        ) as writer:
            for entry in entries:
                writer.add_entry(entry)
        return writer.to_manifest_file()

    def _new_path(self, name: str) -> str:
        path = self._table.location_provider().new_metadata_location(name)
        self.written.append(path)
        return path


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


def _summary(table: Table, writes: Writes, properties: Mapping[str, str], parent: Snapshot | None) -> Summary:
    metadata = table.metadata
    schema, specs = metadata.schema(), metadata.specs()
    collector = SnapshotSummaryCollector()
    for file in writes.added:
        collector.add_file(file, schema, specs[file.spec_id])
    for live in writes.removed:
        collector.remove_file(live.file, schema, specs[live.file.spec_id])
    # pyiceberg adds up the totals of every operation but `replace`.
    counted = Operation.OVERWRITE if writes.operation == "replace" else Operation(writes.operation)
    summary = update_snapshot_summaries(
        Summary(operation=counted, **collector.build(), **properties), parent.summary if parent else None
    )
    if writes.operation == "replace":
        return Summary(operation=Operation.REPLACE, **summary.additional_properties)
    return summary
