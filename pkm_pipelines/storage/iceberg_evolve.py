"""Changing the shape of a table: columns and partitions, in one catalog commit.

pyiceberg works out the new schema and partition spec. What it would let pass, though data would be lost or every later
write fail, is refused here. The properties that name columns (key, order, bounds to keep) move with a rename in the
same commit. A property names the last such change, so that one whose answer was lost is found and not done twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pyarrow as pa
from pyiceberg.exceptions import ValidationError
from pyiceberg.table import Table, TableProperties, Transaction
from pyiceberg.table.update.schema import UpdateSchema
from pyiceberg.types import IcebergType

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.evolution import (
    AddColumn,
    ClusterBy,
    DropColumn,
    Evolution,
    MakeOptional,
    PartitionBy,
    PromoteColumn,
    RenameColumn,
)
from pkm_pipelines.model.schema import Column, PartitionField, TableSpec
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_schema import (
    DETERMINED,
    KEY,
    ORDER,
    ZORDER,
    iceberg_schema,
    names_in,
    partition_field_name,
    read_spec,
)
from pkm_pipelines.storage.iceberg_spec import transform_of
from pkm_pipelines.storage.iceberg_update import Change, property_updates, update_table
from pkm_pipelines.storage.pyiceberg_private import staged

EVOLUTION = "pkm.evolution"
# Columns that changes come with.
RESERVED = frozenset({"_change_type", "_snapshot_id", "_committed_at"})
_METRICS = TableProperties.METRICS_MODE_COLUMN_CONF_PREFIX


def evolve(store: IcebergStore, name: str, changes: Sequence[Evolution], *, fixed: TableSpec | None = None) -> None:
    """Carry out all of `changes`, in their order, in one commit, or none of them. Columns of `fixed` cannot change.

    Raises `TableNotFoundError`, `StoreError` for a change that the table cannot take, and `CommitConflictError` if
    the table kept changing.
    """
    op_id = str(uuid.uuid4())
    own = () if fixed is None else fixed.arrow.names
    for change in changes:
        if isinstance(change, RenameColumn | DropColumn | PromoteColumn | MakeOptional) and change.name in own:
            raise StoreError(
                f"table {name}, column {change.name}: it is the project's own and cannot change; add one of yours"
            )

    def decide(table: Table) -> Change:
        return Change() if table.properties.get(EVOLUTION) == op_id else _change(table, changes, op_id)

    update_table(store, name, decide, what="its columns were changed")


def _change(table: Table, changes: Sequence[Evolution], op_id: str) -> Change:
    spec = read_spec(table)
    transaction = table.transaction()
    properties = dict(table.properties)
    try:
        with transaction.update_schema() as schema:
            for change in changes:
                _Step(table, spec, schema, properties).apply(change)
        for change in changes:
            if isinstance(change, PartitionBy):
                _repartition(transaction, spec, change.fields)
            elif isinstance(change, ClusterBy):
                _cluster(transaction, spec, change.columns, properties)
    except (ValueError, ValidationError) as error:  # pyiceberg's ways of refusing
        raise StoreError(f"table {spec.name} cannot be changed so: {error}") from None
    updates, requirements = staged(transaction)
    wanted = {**dict.fromkeys(table.properties), **properties, EVOLUTION: op_id}
    return Change((*updates, *property_updates(table.properties, wanted)), requirements)


class _Step:
    """One change of columns, checked against what the columns are for."""

    def __init__(self, table: Table, spec: TableSpec, schema: UpdateSchema, properties: dict[str, str]) -> None:
        self._table = table
        self._spec = spec
        self._schema = schema
        self._properties = properties

    def apply(self, change: Evolution) -> None:
        """Stage the change."""
        match change:
            case AddColumn():
                self._add(change)
            case RenameColumn():
                self._rename(change)
            case DropColumn():
                self._drop(change)
            case PromoteColumn():
                self._known(change.name)
                self._schema.update_column((change.name,), _iceberg_type(self._spec, change.name, change.type))
            case MakeOptional():
                self._known(change.name)
                if change.name in self._spec.key:
                    raise StoreError(self._says(change.name, "is part of the key, and a key is never null"))
                self._schema.make_column_optional((change.name,))
            case PartitionBy() | ClusterBy():
                pass  # after the columns, which they may name

    def _add(self, change: AddColumn) -> None:
        self._check_name(change.name)
        if change.required:
            raise StoreError(
                self._says(change.name, "cannot be required: the rows that are there have no value for it; leave it")
                + " optional"
            )
        kind = _iceberg_type(self._spec, change.name, change.type)
        self._schema.add_column((change.name,), kind, doc=change.doc or None)
        if change.after is not None:
            self._schema.move_after((change.name,), (change.after,))

    def _rename(self, change: RenameColumn) -> None:
        self._known(change.name)
        self._check_name(change.to)
        self._schema.rename_column((change.name,), change.to)
        for role in (KEY, ORDER, DETERMINED, ZORDER):
            names = self._properties.get(role, "").split(",")
            if change.name in names:
                self._properties[role] = ",".join(change.to if one == change.name else one for one in names)
        metrics = self._properties.pop(f"{_METRICS}.{change.name}", None)
        if metrics is not None:
            self._properties[f"{_METRICS}.{change.to}"] = metrics

    def _drop(self, change: DropColumn) -> None:
        self._known(change.name)
        spec, number = self._spec, self._table.schema().find_field(change.name).field_id
        specs, orders = self._table.metadata.partition_specs, self._table.metadata.sort_orders
        if change.name in (*spec.key, *spec.order, *spec.determined):
            raise StoreError(self._says(change.name, "is part of the table's key or order and cannot be dropped"))
        if any(field.source_id == number for one in specs for field in one.fields):
            raise StoreError(self._says(change.name, "is, or was, what the table is partitioned by: files lie by it"))
        if any(field.source_id == number for one in orders for field in one.fields):
            raise StoreError(self._says(change.name, "is, or was, what the table is sorted by and cannot be dropped"))
        if change.name in names_in(self._properties, ZORDER):
            raise StoreError(self._says(change.name, "is one that compaction lays rows out by: change that first"))
        self._schema.delete_column((change.name,))
        self._properties.pop(f"{_METRICS}.{change.name}", None)

    def _known(self, name: str) -> None:
        if name not in self._spec.arrow.names:
            raise StoreError(f"table {self._spec.name} has no column {name!r}")

    def _check_name(self, name: str) -> None:
        if name in RESERVED or not name or name != name.strip() or "." in name or "," in name:
            raise StoreError(
                f"table {self._spec.name}: {name!r} is no name for a column: empty, reserved, with '.' or ',', or with"
                " blanks around it"
            )

    def _says(self, column: str, what: str) -> str:
        return f"table {self._spec.name}, column {column}: it {what}"


def _repartition(transaction: Transaction, spec: TableSpec, fields: Sequence[PartitionField]) -> None:
    """Replace the partition spec; fields that stay keep their ids."""
    metadata = transaction.table_metadata
    schema, present = metadata.schema(), metadata.spec()
    for part in fields:
        if part.column not in schema.column_names:
            raise StoreError(f"table {spec.name} has no column {part.column!r} to be partitioned by")
    wanted = {(schema.find_field(part.column).field_id, part.transform): part for part in fields}
    transforms = {identity: transform_of(spec.name, part) for identity, part in wanted.items()}
    kept = {(field.source_id, str(field.transform)) for field in present.fields}
    # A name that an earlier spec gave to another transform cannot be had again.
    taken = {
        field.name: (field.source_id, str(field.transform)) for one in metadata.specs().values() for field in one.fields
    }
    with transaction.update_spec() as update:
        for field in present.fields:
            if (field.source_id, str(field.transform)) not in wanted:
                update.remove_field(field.name)
        for identity, part in wanted.items():
            if identity not in kept:
                name = partition_field_name(part)
                if taken.get(name, identity) != identity:
                    name = "_".join([part.column, *part.transform.replace("]", "").split("[")])
                update.add_field(part.column, transforms[identity], name)


def _cluster(transaction: Transaction, spec: TableSpec, columns: Sequence[str], properties: dict[str, str]) -> None:
    """Set the columns of the z-order, or none."""
    known = {field.name: field.field_type for field in transaction.table_metadata.schema().fields}
    for name in columns:
        if name not in known:
            raise StoreError(f"table {spec.name} has no column {name!r} to lay rows out by")
        if not known[name].is_primitive:
            raise StoreError(f"table {spec.name}, column {name}: values of {known[name]} have no order")
    properties.pop(ZORDER, None)
    if columns:
        properties[ZORDER] = ",".join(dict.fromkeys(columns))


def _iceberg_type(spec: TableSpec, name: str, kind: pa.DataType) -> IcebergType:
    """The Iceberg type of a column.

    A new column and its nested fields get the next ids that the table never had, also not for a column that was
    dropped; `next_field_id` of a spec cannot know those.
    """
    column = Column(1, name, kind, "")
    return iceberg_schema(TableSpec(spec.layer, spec.table, "", "log", (column,), ())).fields[0].field_type
