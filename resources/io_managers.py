"""IO managers over Iceberg and Lance: whatever an asset returns becomes a table.

An asset may return Arrow (table, batch, stream), Polars (eager or lazy), or `Deltas`, which say
themselves what each commit holds. The asset key names the table: its last part is the table, the one before it
the layer. A downstream asset gets the table in the type that it annotates.

Metadata of an asset definition that counts here:

| key | meaning |
|---|---|
| `partition_expr` | column that the asset's partitions divide the table by |
| `write_mode` | `replace` (default: the whole table, or the partitions of the run), `append` or `merge` |
| `key` | columns that identify a row, for `merge` and for every Lance table |
| `columns` | on an input: the columns to read |
"""

import datetime as dt
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.errors import PkmError, StoreError
from pkm_pipelines.model.records import Delta, Slice
from pkm_pipelines.model.schema import Layer, PartitionField
from pkm_pipelines.operations.write import Deltas, write_all
from pkm_pipelines.tables import frames
from pkm_pipelines.tables.rows import in_slice
from resources.lakehouse import LakehouseResource
from resources.metadata import table_metadata

_RETRIES = 2
_RETRY_SECONDS = 2


class _TableIOManager(dg.ConfigurableIOManager):
    """What both stores have in common: finding the table, writing what was returned, reading by type."""

    lakehouse: dg.ResourceDependency[LakehouseResource]
    default_layer: str
    default_mode: str

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write what the asset returned, and tell the UI what was written."""
        if obj is None:
            return
        table = self._table_name(context)
        deltas = obj.parts if isinstance(obj, Deltas) else [self._delta(context, table, obj)]
        lake = self.lakehouse.lake
        with _tried_again(context):
            written = write_all(lake, table, deltas, context.run_id)
        if not lake.has_table(table):
            return  # nothing was ever written: there is no embedder, or the past of a folder was asked for
        context.add_output_metadata({**table_metadata(lake, table, written), **_column_lineage(context)})

    def load_input(self, context: dg.InputContext) -> Any:
        """Read the table in the type that the downstream asset annotates; only the partitions of its run."""
        output = context.upstream_output
        if output is None:
            raise StoreError(f"input {context.name}: no asset stands behind it")
        columns = (context.definition_metadata or {}).get("columns")
        view = self.lakehouse.lake.table(self._table_name(output))
        part = _slice(context, _partition_column(context, output.definition_metadata), view.schema)
        if context.dagster_type.typing_type is pl.LazyFrame:
            return view.lazy(columns, part)
        reader = view.scan(columns, part)
        if context.dagster_type.typing_type is pa.RecordBatchReader:
            return reader
        if context.dagster_type.typing_type is pl.DataFrame:
            return pl.from_arrow(reader.read_all())
        return reader.read_all()

    def _table_name(self, context: dg.OutputContext) -> str:
        path = context.asset_key.path
        return f"{path[-2] if len(path) > 1 else self.default_layer}.{path[-1]}"

    def _delta(self, context: dg.OutputContext, table: str, obj: Any) -> Delta:
        metadata = context.definition_metadata or {}
        rows = frames.to_stream(obj)
        layer, _, name = table.partition(".")
        column = _partition_column(context, metadata)
        transform = "day" if isinstance(_partitions(context), dg.TimeWindowPartitionsDefinition) else "identity"
        key: Sequence[str] = metadata.get("key", ())
        spec = frames.spec_of(
            cast(Layer, layer),
            name,
            rows.schema,
            doc=str(metadata.get("doc", "")),
            key=[key] if isinstance(key, str) else key,
            partition=PartitionField(column, transform) if column else None,
        )
        self.lakehouse.lake.ensure(spec)
        mode = metadata.get("write_mode", self.default_mode)
        part = _slice(context, column, rows.schema)
        return Delta(
            table=table,
            rows=_within(rows, part, table) if part else rows,
            mode=mode,
            op_id=str(uuid.uuid4()),
            replace_where=part if mode == "replace" else None,
        )


class IcebergIOManager(_TableIOManager):
    """Tables of the layers bronze, silver and gold."""

    default_layer: str = "silver"
    default_mode: str = "replace"


class LanceIOManager(_TableIOManager):
    """Tables of vectors."""

    default_layer: str = "vectors"
    default_mode: str = "merge"


def _column_lineage(context: dg.OutputContext) -> Mapping[str, Any]:
    """The lineage that the asset declares; catalogs look for it at the materialisation and not at the definition."""
    name = "dagster/column_lineage"
    return {key: value for key, value in (context.definition_metadata or {}).items() if key == name}


@contextmanager
def _tried_again(context: dg.OutputContext) -> Iterator[None]:
    """Have Dagster run the step again after a failure that may pass: of a store, or of what lies below one.

    What a source, a setting or a note is to blame for fails the same way each time. This is no `RetryPolicy`,
    because one of those also runs again what somebody has cancelled.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, PkmError) and not isinstance(error, StoreError):
            raise
        wait = _RETRY_SECONDS * 2**context.step_context.previous_attempt_count
        raise dg.RetryRequested(max_retries=_RETRIES, seconds_to_wait=wait) from error


def _within(rows: Iterable[pa.RecordBatch], part: Slice, table: str) -> Iterator[pa.RecordBatch]:
    """`rows` as they are; a row of another partition would stand there twice once that one is written."""
    for batch in rows:
        inside = in_slice(pa.Table.from_batches([batch]), part)
        if not pc.all(inside).as_py():
            wrong = batch.column(part.column).filter(pc.invert(inside))[0].as_py()
            raise StoreError(f"table {table}: {part.column} {wrong} lies outside of the partitions of this run")
        yield batch


def _partitions(context: dg.OutputContext | dg.InputContext) -> dg.PartitionsDefinition | None:
    return context.asset_partitions_def if context.has_asset_partitions else None


def _partition_column(context: dg.OutputContext | dg.InputContext, metadata: Mapping[str, Any] | None) -> str | None:
    """The column by which the partitions of the asset that is written or read divide its table."""
    column = (metadata or {}).get("partition_expr")
    if column is None and _partitions(context) is not None:
        raise StoreError(
            f"asset {context.asset_key.to_user_string()} is partitioned: say by which column in `partition_expr`"
        )
    return column


def _slice(context: dg.OutputContext | dg.InputContext, column: str | None, schema: pa.Schema) -> Slice | None:
    """The part of the table that the partitions of this run are; None for the whole table."""
    if column is None or not context.has_asset_partitions:
        return None
    if column not in schema.names:
        raise StoreError(
            f"asset {context.asset_key.to_user_string()}: there is no column {column!r} (`partition_expr`)"
        )
    if not isinstance(context.asset_partitions_def, dg.TimeWindowPartitionsDefinition):
        return Slice(column, values=tuple(context.asset_partition_keys))
    window = context.asset_partitions_time_window
    kind = schema.field(column).type
    return Slice(column, first=_bound(window.start, kind), before=_bound(window.end, kind))


def _bound(moment: dt.datetime, kind: pa.DataType) -> dt.date | dt.datetime:
    """A bound as the column has it: a day, a moment, or a moment on a clock that names no zone."""
    if pa.types.is_date(kind):
        return moment.date()
    return moment if kind.tz else moment.replace(tzinfo=None)
