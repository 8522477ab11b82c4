"""Tables as a catalog may have them from others: written by another engine, or with their files gone."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_register import repoint
from pkm_pipelines.storage.iceberg_snapshot import Writes


class _EqualityDelete:
    """Deletes rows by the value of a column, as Flink does."""

    def __init__(self, column: str, value: object) -> None:
        self._column, self._value = column, value
        self.paths: list[str] = []

    def __call__(self, table: Table) -> Writes:
        field = table.schema().find_field(self._column)
        number = {"PARQUET:field_id": str(field.field_id)}
        rows = pa.table([pa.array([self._value])], pa.schema([pa.field(field.name, pa.string(), False, number)]))
        path = table.location_provider().new_data_location(f"{uuid.uuid4()}-equality.parquet")
        with table.io.new_output(path).create() as stream:
            pq.write_table(rows, stream)
            size = stream.tell()
        file = DataFile.from_args(
            content=DataFileContent.EQUALITY_DELETES,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=Record(),
            record_count=1,
            file_size_in_bytes=size,
            equality_ids=[field.field_id],
        )
        file.spec_id = table.spec().spec_id
        return Writes(deletes=[file], operation="overwrite")


def delete_by_equality(store: IcebergStore, name: str, column: str, value: object) -> None:
    """Commit a file of equality deletes to an unpartitioned table."""
    commit(store, name, _EqualityDelete(column, value), op_id=str(uuid.uuid4()))


def lose_files(store: IcebergStore, name: str) -> None:
    """Delete the folder of a table of a SQL catalog behind its back.

    The catalog then names a file of it that nobody has read before: metadata that was read stays in memory.
    """
    table = store.load(name)
    repoint(store, name, table.metadata_location, f"{table.location()}/metadata/9.metadata.json", announce=lambda: None)
    shutil.rmtree(Path(urlparse(table.location()).path))
