"""How a `TableSpec` becomes an Iceberg table: schema, partition spec, sort order and properties.

Field ids are those of the spec. The fields inside lists and structs are numbered as every Iceberg catalog numbers
them: those of a new table after its last column, those of a column added later after that column. So what a
catalog made can be compared with what was asked for (`check_table`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Literal, cast, get_args

import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionSpec
from pyiceberg.partitioning import PartitionField as IcebergPartitionField
from pyiceberg.schema import Schema
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.sorting import NullOrder, SortDirection, SortField, SortOrder
from pyiceberg.transforms import IdentityTransform, VoidTransform, parse_transform
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    NestedField,
    StringType,
    StructType,
    TimestampType,
    TimestamptzType,
)

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.schema import Column, Kind, Layer, PartitionField, TableSpec

FORMAT_VERSION = "pkm.format-version"
KIND = "pkm.kind"
KEY = "pkm.key"
ORDER = "pkm.order"
DETERMINED = "pkm.determined"
# The columns by whose z-order compaction lays rows out; by the table's sort order where there are none.
ZORDER = "pkm.z-order"
# How merges write: what a table is set to, and in the summary of a snapshot what its write did and why.
WRITE_MODE = "pkm.write-mode"
WRITE_REASON = "pkm.write-reason"
# How often the table is read between two writes, for the rule of hybrid writes: a number. It is counted if not set.
READS_PER_WRITE = "pkm.reads-per-write"

# Bytes of Arrow data in one data file before compression. A merge rewrites whole files, so this bounds its memory
# and the cost of changing one row; compaction may pack cold data into larger files.
TARGET_FILE_BYTES = 64 << 20
# Bytes of Arrow data in one Parquet row group: what a reader holds at once.
ROW_GROUP_BYTES = 16 << 20
# Rows of one row group in a table that is merged into by key. To find a row, the row group that it is in is read. Where
# rows are marked that is most of the work, so this keeps its cost flat, however large the table; where files are
# written again it is little of it, and larger row groups make scans faster (docs/decisions/0010).
MARKED_ROW_GROUP_ROWS = 4096
REWRITTEN_ROW_GROUP_ROWS = 32_768

TableMode = Literal["copy-on-write", "merge-on-read", "hybrid"]
TABLE_MODES: tuple[TableMode, ...] = get_args(TableMode)

_PRIMITIVES: dict[pa.DataType, IcebergType] = {
    pa.bool_(): BooleanType(),
    pa.int32(): IntegerType(),
    pa.int64(): LongType(),
    pa.float32(): FloatType(),
    pa.float64(): DoubleType(),
    pa.string(): StringType(),
    pa.binary(): BinaryType(),
    pa.date32(): DateType(),
    pa.timestamp("us"): TimestampType(),
    pa.timestamp("us", tz="UTC"): TimestamptzType(),
}


def iceberg_schema(spec: TableSpec) -> Schema:
    """The Iceberg schema of `spec`; its key columns are the identifier fields where Iceberg allows it.

    Raises `StoreError` if a column has a type that Iceberg v2 cannot hold.
    """
    ids = {column.id for column in spec.columns}
    born_with = next(number for number in itertools.count(1) if number not in ids) - 1
    numbers = itertools.count(born_with + 1)
    fields: list[NestedField] = []
    for column in spec.columns:
        inner = numbers if column.id <= born_with else itertools.count(column.id + 1)
        kind = _iceberg_type(column.type, inner, f"{spec.name}.{column.name}")
        fields.append(NestedField(column.id, column.name, kind, required=column.required, doc=column.doc))
    by_name = {field.name: field for field in fields}
    key = [by_name[name] for name in spec.key]
    identifies = all(f.required and f.field_type.is_primitive and not _is_float(f.field_type) for f in key)
    return Schema(*fields, identifier_field_ids=[field.field_id for field in key] if identifies else [])


def next_field_id(spec: TableSpec) -> int:
    """The id that a new column of `spec` must take: the first that neither a column nor a nested field has."""
    return iceberg_schema(spec).highest_field_id + 1


def partition_spec(spec: TableSpec) -> PartitionSpec:
    """The partition spec of `spec`; a field is named after its column and transform, for example `note_id_bucket`."""
    fields: list[IcebergPartitionField] = []
    for position, part in enumerate(spec.partition):
        transform = parse_transform(part.transform)
        source = spec.column(part.column).id
        name = partition_field_name(part)
        fields.append(IcebergPartitionField(source, PARTITION_FIELD_ID_START + position, transform, name))
    return PartitionSpec(*fields)


def partition_field_name(part: PartitionField) -> str:
    """What a partition field is called: its column, and the transform if it is one."""
    is_plain = isinstance(parse_transform(part.transform), IdentityTransform)
    return part.column if is_plain else f"{part.column}_{part.transform.partition('[')[0]}"


def sort_order(spec: TableSpec) -> SortOrder:
    """The sort order of `spec`: ascending, nulls first."""
    return SortOrder(
        *(
            SortField(
                spec.column(name).id,
                IdentityTransform(),
                direction=SortDirection.ASC,
                null_order=NullOrder.NULLS_FIRST,
            )
            for name in spec.sort
        )
    )


def table_properties(spec: TableSpec) -> dict[str, str]:
    """The properties of a new table.

    pyiceberg's own retries are off, because they would commit stale watermarks (decision 0003). Old metadata files
    go, so that a table of many commits stays small. Column bounds are kept only where something prunes by them:
    keys, order, partition and sort columns, dates and times; bounds of texts would cost more than they save.
    """
    metrics = {
        column.name: "truncate(64)" if pa.types.is_string(column.type) else "full"
        for column in spec.columns
        if column.name in (*spec.order, *spec.sort, *(part.column for part in spec.partition))
        or pa.types.is_temporal(column.type)
    }
    metrics |= dict.fromkeys(spec.key, "full")
    return {
        TableProperties.FORMAT_VERSION: "2",
        TableProperties.COMMIT_NUM_RETRIES: "0",
        TableProperties.MANIFEST_MERGE_ENABLED: "true",
        TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED: "true",
        TableProperties.METADATA_PREVIOUS_VERSIONS_MAX: "20",
        TableProperties.PARQUET_COMPRESSION: "zstd",
        TableProperties.WRITE_TARGET_FILE_SIZE_BYTES: str(TARGET_FILE_BYTES),
        TableProperties.DEFAULT_WRITE_METRICS_MODE: "none",
        FORMAT_VERSION: str(spec.format_version),
        KIND: spec.kind,
        KEY: ",".join(spec.key),
        ORDER: ",".join(spec.order),
        DETERMINED: ",".join(spec.determined),
        "comment": spec.doc,
    } | {f"{TableProperties.METRICS_MODE_COLUMN_CONF_PREFIX}.{name}": mode for name, mode in metrics.items()}


def check_write_mode(table: Table, mode: TableMode) -> None:
    """Raise `StoreError` if merges into `table` cannot write so."""
    if mode != "copy-on-write" and table.metadata.format_version < 2:
        raise StoreError(
            f"table {'.'.join(table.name())} has Iceberg's format 1, which knows no deletes of rows, so its write mode"
            f" cannot be {mode}; upgrade it to format 2 with the engine that made it, then set the mode"
        )


def write_mode_of(table: Table) -> TableMode:
    """How merges into `table` write; raises `StoreError` for a mode that there is not, or not in its format."""
    mode = table.properties.get(WRITE_MODE, "copy-on-write")
    if mode not in TABLE_MODES:
        raise StoreError(
            f"table {'.'.join(table.name())}: its property {WRITE_MODE} is {mode!r}, and must be one of"
            f" {', '.join(TABLE_MODES)}"
        )
    check_write_mode(table, mode)
    return mode


def merge_key_of(table: Table) -> list[str]:
    """The columns by which rows of `table` are merged; none in a log."""
    if kind_of(table) != "state":
        return []
    known = {field.name for field in table.schema().fields}
    key = key_of(table)
    return list(key) if known.issuperset(key) else []


def kind_of(table: Table) -> Kind:
    """What `table` was made as; one that somebody else made is a state table if it has a key."""
    made_as = table.properties.get(KIND)
    if made_as is None:
        return "state" if key_of(table) else "log"
    return "state" if made_as == "state" else "log"


def key_of(table: Table) -> tuple[str, ...]:
    """The key of `table`: its identifier fields where somebody else made it, if they are columns and no nested fields.

    In a log it is the column that is unique.
    """
    if KEY in table.properties:
        return names_in(table.properties, KEY)
    schema = table.schema()
    identifiers = set(schema.identifier_field_ids)
    key = tuple(field.name for field in schema.fields if field.field_id in identifiers)
    return key if len(key) == len(identifiers) else ()


def partition_sources(table: Table) -> set[str]:
    """The columns by whose values the present partition spec tells partitions apart; nested ones as `column.field`."""
    schema = table.schema()
    fields = (field for field in table.spec().fields if not isinstance(field.transform, VoidTransform))
    return {_column_name(table, schema, field.source_id) for field in fields}


def row_group_rows_of(table: Table) -> int | None:
    """The rows that a row group of `table` may have; None if only its bytes count. Raises `StoreError`.

    The table's own property `write.parquet.row-group-limit` goes before what its kind and mode make of it.
    """
    name = TableProperties.PARQUET_ROW_GROUP_LIMIT
    given = table.properties.get(name)
    if given is not None:
        if not given.isdecimal() or not int(given):
            raise StoreError(f"table {'.'.join(table.name())}: its property {name} is {given!r}, not a number of rows")
        return int(given)
    if not merge_key_of(table):
        return None
    return REWRITTEN_ROW_GROUP_ROWS if write_mode_of(table) == "copy-on-write" else MARKED_ROW_GROUP_ROWS


def reads_per_write_of(table: Table) -> float | None:
    """How often the table is read between two writes, if its owner has said so; raises `StoreError`."""
    given = table.properties.get(READS_PER_WRITE)
    if given is None:
        return None
    try:
        reads = float(given)
    except ValueError:
        reads = -1.0
    if not 0 <= reads < float("inf"):
        raise StoreError(f"table {'.'.join(table.name())}: its property {READS_PER_WRITE} is {given!r}, not a number")
    return reads


def write_mode_properties(mode: TableMode) -> dict[str, str]:
    """The properties that make a table write so: our own, and the standard ones by which other engines go.

    They know no hybrid: then they are to leave rewriting to our merges and to compaction.
    """
    standard = "copy-on-write" if mode == "copy-on-write" else "merge-on-read"
    names = (TableProperties.DELETE_MODE, "write.update.mode", "write.merge.mode")
    return {WRITE_MODE: mode, **dict.fromkeys(names, standard)}


def check_table(table: Table, spec: TableSpec) -> None:
    """Raise `StoreError` if `table` is of another format, or lacks columns of `spec` under their ids and types.

    Columns that somebody added to the table are no error: reads project them away.
    """
    found_format = int(table.properties.get(FORMAT_VERSION, spec.format_version))
    if found_format != spec.format_version:
        what = (
            "a newer version of the project made it"
            if found_format > spec.format_version
            else "run `pkm warehouse migrate`"
        )
        raise StoreError(
            f"table {spec.name} has format {found_format}, and this version of the project writes"
            f" format {spec.format_version}: {what}"
        )
    fields = {field.name: field for field in table.schema().fields}
    for wanted in iceberg_schema(spec).fields:
        found = fields.get(wanted.name)
        if found is None:
            problem = "is missing"
        elif found.field_id != wanted.field_id:
            problem = f"has field id {found.field_id} and not {wanted.field_id}"
        elif found.field_type != wanted.field_type:
            problem = f"is {found.field_type} and not {wanted.field_type}"
        else:
            continue
        raise StoreError(
            f"table {spec.name}: column {wanted.name} {problem}; the table was made by another version of the"
            " project (migrate it) or by something else (use another warehouse)"
        )


def read_spec(table: Table) -> TableSpec:
    """The spec of a table that is none of the project's own, from its schema and the properties we gave it."""
    *layers, name = table.name()
    properties = table.properties
    schema, arrow = table.schema(), arrow_schema(table.schema())
    return TableSpec(
        layer=cast(Layer, ".".join(layers)),
        table=name,
        doc=properties.get("comment", ""),
        kind=kind_of(table),
        columns=tuple(
            Column(field.field_id, field.name, arrow.field(field.name).type, field.doc or "", field.required)
            for field in schema.fields
        ),
        key=key_of(table),
        order=names_in(properties, ORDER),
        determined=names_in(properties, DETERMINED),
        partition=tuple(
            PartitionField(_column_name(table, schema, field.source_id), str(field.transform))
            for field in table.spec().fields
            if not isinstance(field.transform, VoidTransform)
        ),
        sort=tuple(_column_name(table, schema, field.source_id) for field in table.sort_order().fields),
    )


def _column_name(table: Table, schema: Schema, field_id: int) -> str:
    name = schema.find_column_name(field_id)
    if name is None:
        raise StoreError(
            f"table {'.'.join(table.name())}: it is partitioned or sorted by field {field_id}, which it has no more;"
            " give it other partitions with the engine that dropped that"
        )
    return name


def names_in(properties: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The columns that a property names."""
    return tuple(part for part in properties.get(name, "").split(",") if part)


def arrow_schema(schema: Schema, *, field_ids: bool = False) -> pa.Schema:
    """The Arrow schema of an Iceberg schema with 32-bit offsets (`string`, not `large_string`).

    `field_ids` adds the ids that Parquet files must carry. A uuid is its 16 bytes here, because pyarrow can neither
    compare nor sort its own type for it; files have that (`file_schema`).
    """
    large = schema_to_pyarrow(schema, include_field_ids=field_ids)
    return pa.schema([_small_field(field, has_uuids=False) for field in large])


def file_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of the data files that are written for an Iceberg schema."""
    large = schema_to_pyarrow(schema, include_field_ids=True)
    return pa.schema([_small_field(field, has_uuids=True) for field in large])


def _small_field(field: pa.Field, has_uuids: bool) -> pa.Field:
    return field.with_type(_small(field.type, has_uuids))


def _small(kind: pa.DataType, has_uuids: bool) -> pa.DataType:
    if isinstance(kind, pa.UuidType):
        return kind if has_uuids else kind.storage_type
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_small_field(kind.value_field, has_uuids))
    if pa.types.is_struct(kind):
        return pa.struct([_small_field(kind.field(position), has_uuids) for position in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(_small_field(kind.key_field, has_uuids), _small_field(kind.item_field, has_uuids))
    return kind


def _iceberg_type(kind: pa.DataType, numbers: Iterator[int], where: str) -> IcebergType:
    if primitive := _PRIMITIVES.get(kind):
        return primitive
    if pa.types.is_list(kind):
        number = next(numbers)
        return ListType(number, _iceberg_type(kind.value_type, numbers, where), element_required=False)
    if pa.types.is_struct(kind):
        inner = [kind.field(position) for position in range(kind.num_fields)]
        ids = [next(numbers) for _ in inner]
        return StructType(
            *(
                NestedField(number, field.name, _iceberg_type(field.type, numbers, where), required=not field.nullable)
                for number, field in zip(ids, inner, strict=True)
            )
        )
    raise StoreError(f"column {where}: an Iceberg table cannot hold the type {kind}")


def _is_float(kind: IcebergType) -> bool:
    return isinstance(kind, FloatType | DoubleType)
