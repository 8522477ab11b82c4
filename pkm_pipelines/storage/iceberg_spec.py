"""What a new table must be like, so that whatever is written to it later can be.

A table of another engine may be otherwise; ours is refused when it is made and not with its first rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pyiceberg.exceptions import ValidationError
from pyiceberg.schema import Schema
from pyiceberg.transforms import (
    BucketTransform,
    Transform,
    TruncateTransform,
    UnknownTransform,
    VoidTransform,
    parse_transform,
)

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.schema import PartitionField, TableSpec
from pkm_pipelines.storage.iceberg_schema import iceberg_schema, partition_field_name

# They separate the names of namespaces, end or divide the path of a URL, or separate columns in a table's properties.
_NO_TABLE = frozenset("./#?")
_NO_LAYER = frozenset("/#?")
_SEPARATOR = ","


def check_spec(spec: TableSpec) -> None:
    """Raise `StoreError` if a table cannot be made by `spec`, or not be written to."""
    _check_name(spec)
    names = [column.name for column in spec.columns]
    for what, found in (("name", names), ("id", [column.id for column in spec.columns])):
        if twice := _repeated(found):
            raise StoreError(f"table {spec.name}: two columns have the {what} {twice!r}; each needs one of its own")
    if not names:
        raise StoreError(f"table {spec.name}: it has no columns; name at least one")
    if twice := _repeated(spec.key):
        raise StoreError(f"table {spec.name}: its key names column {twice!r} twice; name it once")
    if low := next((column for column in spec.columns if column.id < 1), None):
        raise StoreError(f"table {spec.name}: column {low.name} has the id {low.id}; ids begin at 1")
    partitioned = [part.column for part in spec.partition]
    written_down = {"key": spec.key, "order": spec.order, "determined columns": spec.determined}
    roles = {**written_down, "sort order": spec.sort, "partitioning": partitioned}
    for role, columns in roles.items():
        if unknown := set(columns).difference(names):
            raise StoreError(
                f"table {spec.name}: there is no column {min(unknown)!r} for its {role} (there are {', '.join(names)})"
            )
    for role, columns in written_down.items():
        if name := next((name for name in columns if _SEPARATOR in name), None):
            raise StoreError(f"table {spec.name}: column {name!r} cannot be in its {role} with a comma; rename it")
    schema = iceberg_schema(spec)
    for role, columns in roles.items():
        _check_order(spec, schema, role, columns)
    _check_partitions(spec, schema)


def _check_name(spec: TableSpec) -> None:
    for what, name, refused in (("layer", spec.layer, _NO_LAYER), ("table", spec.table, _NO_TABLE)):
        if not name.strip() or refused.intersection(name):
            raise StoreError(
                f"{spec.name!r}: {name!r} is no name for a {what}; a table is called <layer>.<name>, and neither is"
                f" empty or has one of {' '.join(sorted(refused))}"
            )


def _check_order(spec: TableSpec, schema: Schema, role: str, columns: Iterable[str]) -> None:
    for name in columns:
        kind = schema.find_field(spec.column(name).id).field_type
        if not kind.is_primitive:
            raise StoreError(
                f"table {spec.name}, column {name}: values of {kind} have no order, so it cannot be in its {role}"
            )


def _check_partitions(spec: TableSpec, schema: Schema) -> None:
    taken: dict[tuple[str, str], str] = {}
    for part in spec.partition:
        transform = transform_of(spec.name, part)
        kind = schema.find_field(spec.column(part.column).id).field_type
        if not transform.can_transform(kind):
            raise StoreError(
                f"table {spec.name}, column {part.column}: it is {kind} and cannot be partitioned by {part.transform}"
            )
        name = partition_field_name(part)
        if name != part.column and name in spec.arrow.names:
            raise StoreError(
                f"table {spec.name}: its partition by {part.transform} of {part.column} is called {name}, as a column"
                " is; rename the column"
            )
        family = (part.column, part.transform.partition("[")[0] if "[" in part.transform else transform.dedup_name)
        if other := taken.get(family):
            raise StoreError(
                f"table {spec.name}, column {part.column}: it is partitioned by {other} and by {part.transform}; one of"
                " them is enough"
            )
        taken[family] = part.transform


def transform_of(table: str, part: PartitionField) -> Transform[object, object]:
    """What a table is partitioned by; raises `StoreError` for what no row can be written by."""
    try:
        found = parse_transform(part.transform)
    except (ValueError, ValidationError):
        found = UnknownTransform(part.transform)
    is_empty = (isinstance(found, BucketTransform) and not found.num_buckets) or (
        isinstance(found, TruncateTransform) and not found.width
    )
    if is_empty or isinstance(found, UnknownTransform | VoidTransform):
        raise StoreError(
            f"table {table}, column {part.column}: {part.transform!r} is no partitioning; there are identity,"
            " bucket[N], truncate[N], year, month, day and hour"
        )
    return found


def _repeated(found: Iterable[object]) -> object:
    """One that is there more than once; None if there is none."""
    return next((one for one, count in Counter(found).items() if count > 1), None)
