"""Merge-on-read deletes as other engines write them: one file for a partition, without order and without bounds."""

from __future__ import annotations

import uuid
from collections import defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.typedef import Record

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_manifests import live_files
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.storage.iceberg_snapshot import Writes, ask_catalog, prepare_snapshot
from pkm_pipelines.tables.manager import TableManager

# Reserved field ids, https://iceberg.apache.org/spec/#position-delete-files
_SCHEMA = pa.schema(
    [
        pa.field("file_path", pa.string(), False, {"PARQUET:field_id": "2147483546"}),
        pa.field("pos", pa.int64(), False, {"PARQUET:field_id": "2147483545"}),
    ]
)


def delete_positions(tables: TableManager, spec: TableSpec, column: str, values: set[str]) -> None:
    """Delete the rows whose `column` is one of `values`, by their positions in the files that hold them.

    The files must have no deletes yet.
    """
    table = tables.iceberg.load(spec.name)
    found: dict[tuple[int, Record], list[tuple[str, int]]] = defaultdict(list)
    for live in live_files(table, table.current_snapshot()):
        assert not live.deletes
        for position, value in enumerate(FileReader(table, [column]).read(live).column(0).to_pylist()):
            if value in values:
                found[live.file.spec_id, live.file.partition].insert(0, (live.path, position))
    deletes: list[DataFile] = []
    for (spec_id, partition), rows in found.items():
        path = table.location_provider().new_data_location(f"{uuid.uuid4()}-deletes.parquet")
        with table.io.new_output(path).create() as stream:
            pq.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], schema=_SCHEMA), stream)
            size = stream.tell()
        delete = DataFile.from_args(
            content=DataFileContent.POSITION_DELETES,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=partition,
            record_count=len(rows),
            file_size_in_bytes=size,
        )
        delete.spec_id = spec_id
        deletes.append(delete)
    prepared = prepare_snapshot(table, Writes(deletes=deletes, operation="overwrite"), {})
    ask_catalog(table, prepared.updates, prepared.requirements)
