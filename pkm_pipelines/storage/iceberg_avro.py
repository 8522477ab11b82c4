"""Writing an Avro file of Iceberg's again with some of its values changed, and everything else as it was.

Manifests and manifest lists are read and written in their own schema, whichever version of Iceberg and whichever engine
made them: nothing is inherited, defaulted or dropped on the way, as it would be on the way through objects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyiceberg.avro.file import AvroFile, AvroOutputFile
from pyiceberg.io import InputFile, OutputFile
from pyiceberg.schema import Schema
from pyiceberg.typedef import Record
from pyiceberg.types import NestedField, StructType

_SCHEMA = "avro.schema"
_BLOCK = 1000


@dataclass(frozen=True)
class Row:
    """A record of an Avro file, by the names of its fields; `row["data_file"]` is a row again."""

    record: Record
    fields: tuple[NestedField, ...]

    def __getitem__(self, name: str) -> Any:
        """The value of a field; None for one that the file does not have."""
        for position, field in enumerate(self.fields):
            if field.name == name:
                value, kind = self.record[position], field.field_type
                return Row(value, kind.fields) if isinstance(value, Record) and isinstance(kind, StructType) else value
        return None

    def __setitem__(self, name: str, value: Any) -> None:
        """Change the value of a field; nothing happens if the file does not have it."""
        for position, field in enumerate(self.fields):
            if field.name == name:
                self.record[position] = value


def read_rows(file: InputFile) -> Iterator[Row]:
    """The records of an Avro file."""
    with AvroFile[Record](file) as reader:
        schema: Schema = reader.schema
        for record in reader:
            yield Row(record, schema.fields)


def rewrite(source: InputFile, target: OutputFile, change: Callable[[Row], None]) -> int:
    """Write the file `source` again to `target`, each of its records as `change` leaves it; the length in bytes."""
    with AvroFile[Record](source) as reader:
        schema: Schema = reader.schema
        header = dict(reader.header.meta)
        name = json.loads(header.pop(_SCHEMA))["name"]
        records: list[Record] = []
        with AvroOutputFile[Record](target, schema, name, schema, header) as writer:
            for record in reader:
                change(Row(record, schema.fields))
                records.append(record)
                if len(records) == _BLOCK:
                    writer.write_block(records)
                    records = []
            if records:
                writer.write_block(records)
    return len(target)
