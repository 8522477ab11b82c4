"""Merge-on-read deletes as other engines write them: the Parquet files and the manifest of the specification."""

from __future__ import annotations

import uuid

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.update import AddSnapshotUpdate

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_manifests import live_files, manifests_of
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import ask_catalog, assert_ref, set_ref
from pkm_pipelines.tables.manager import TableManager

# Reserved field ids, https://iceberg.apache.org/spec/#position-delete-files
_SCHEMA = pa.schema(
    [
        pa.field("file_path", pa.string(), False, {"PARQUET:field_id": "2147483546"}),
        pa.field("pos", pa.int64(), False, {"PARQUET:field_id": "2147483545"}),
    ]
)


class _DeleteManifest(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def delete_positions(tables: TableManager, spec: TableSpec, column: str, values: set[str]) -> None:
    """Delete the rows whose `column` is one of `values`, by their positions in the files that hold them."""
    table = tables.iceberg.load(spec.name)
    parent = table.current_snapshot()
    assert parent is not None
    deletes: list[DataFile] = []
    for live in live_files(table, parent):
        found = FileReader(table, [column]).read(live).column(0).to_pylist()
        positions = [position for position, value in enumerate(found) if value in values]
        if not positions:
            continue
        path = table.location_provider().new_data_location(f"{uuid.uuid4()}-deletes.parquet")
        rows = pa.table({"file_path": [live.path] * len(positions), "pos": positions}, schema=_SCHEMA)
        with table.io.new_output(path).create() as stream:
            pq.write_table(rows, stream)
            size = stream.tell()
        delete = DataFile.from_args(
            content=DataFileContent.POSITION_DELETES,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=live.file.partition,
            record_count=len(positions),
            file_size_in_bytes=size,
        )
        delete.spec_id = live.file.spec_id
        deletes.append(delete)
    snapshot_id, name = table.metadata.new_snapshot_id(), uuid.uuid4()
    output = table.io.new_output(table.location_provider().new_metadata_location(f"{name}-m0.avro"))
    with _DeleteManifest(table.spec(), table.schema(), output, snapshot_id, "deflate") as writer:
        for delete in deletes:
            writer.add_entry(
                ManifestEntry.from_args(
                    status=ManifestEntryStatus.ADDED, snapshot_id=snapshot_id, sequence_number=None, data_file=delete
                )
            )
    path = table.location_provider().new_metadata_location(f"snap-{snapshot_id}-0-{name}.avro")
    number = table.metadata.next_sequence_number()
    with write_manifest_list(
        2, table.io.new_output(path), snapshot_id, parent.snapshot_id, number, "deflate"
    ) as manifest_list:
        manifest_list.add_manifests([writer.to_manifest_file(), *manifests_of(table, parent)])
    snapshot = Snapshot.model_validate(
        {
            "snapshot-id": snapshot_id,
            "parent-snapshot-id": parent.snapshot_id,
            "sequence-number": number,
            "manifest-list": path,
            "summary": Summary(Operation.OVERWRITE),
            "schema-id": table.metadata.current_schema_id,
        }
    )
    updates = [AddSnapshotUpdate(snapshot=snapshot), set_ref("main", snapshot_id)]
    ask_catalog(table, updates, [assert_ref(table, "main")])
