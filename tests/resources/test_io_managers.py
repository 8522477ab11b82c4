"""Any asset that returns a frame gets a table: modes, partitions, ranges, reads by type, and what the UI is told."""

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest

from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.errors import SourceError, StoreError
from pkm_pipelines.model.progress import NullProgress
from pkm_pipelines.operations.write import Deltas
from resources.io_managers import IcebergIOManager, LanceIOManager
from resources.lakehouse import LakehouseResource, attached
from resources.metadata import preview
from tests.support.lake import open_lake

ROWS = {"word": ["loaf", "crumb", "crust"], "count": [3, 1, 2]}
DAYS = dg.DailyPartitionsDefinition("2024-03-01", end_date="2024-03-06")
KINDS = dg.StaticPartitionsDefinition(["rye", "wheat", "o'at"])


@pytest.fixture
def lake(work: Path) -> Iterator[Lakehouse]:
    (work / "vault").mkdir()
    with open_lake(work / "lake", work / "vault") as lake, attached(lake, NullProgress()):
        yield lake


def materialise(*assets: Any, fails: bool = False, **options: Any) -> dg.ExecuteInProcessResult:
    resource = LakehouseResource()
    result = dg.materialize(
        assets,
        resources={"iceberg": IcebergIOManager(lakehouse=resource), "lance": LanceIOManager(lakehouse=resource)},
        raise_on_error=False,
        **options,
    )
    assert result.success is not fails, [
        event.step_failure_data.error for event in result.all_events if event.is_step_failure
    ]
    return result


def over(first: str, last: str) -> dict[str, str]:
    """The tags of a run of a range of partitions, as a backfill sets them."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def rows(lake: Lakehouse, table: str, *order: str) -> list[dict[str, Any]]:
    found = lake.table(table).scan().read_all()
    return found.sort_by([(name, "ascending") for name in order or found.column_names]).to_pylist()


def failure(result: dg.ExecuteInProcessResult) -> str:
    [event] = [event for event in result.all_events if event.is_step_failure]
    error = event.step_failure_data.error
    while error is not None and error.cause is not None:
        error = error.cause
    assert error is not None
    return error.message


def stream() -> pa.RecordBatchReader:
    table = pa.table(ROWS)
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=2))


@pytest.mark.parametrize(
    "frame",
    [
        lambda: pa.table(ROWS),
        lambda: pa.RecordBatch.from_pydict(ROWS),
        stream,
        lambda: pl.DataFrame(ROWS),
        lambda: pl.DataFrame(ROWS).lazy(),
    ],
    ids=["table", "batch", "stream", "polars", "lazy"],
)
def test_a_frame_becomes_a_table_and_is_read_back_in_every_type(lake: Lakehouse, frame: Any) -> None:
    seen: dict[str, Any] = {}

    @dg.asset(key_prefix="gold", io_manager_key="iceberg")
    def words() -> Any:
        return frame()

    @dg.asset(ins={"words": dg.AssetIn(["gold", "words"])}, io_manager_key="iceberg")
    def as_table(words: pa.Table) -> None:
        seen["table"] = words

    @dg.asset(ins={"words": dg.AssetIn(["gold", "words"])}, io_manager_key="iceberg")
    def as_stream(words: pa.RecordBatchReader) -> None:
        seen["stream"] = words.read_all()

    @dg.asset(ins={"words": dg.AssetIn(["gold", "words"])}, io_manager_key="iceberg")
    def as_frame(words: pl.DataFrame) -> None:
        seen["frame"] = words.to_arrow()

    @dg.asset(ins={"words": dg.AssetIn(["gold", "words"])}, io_manager_key="iceberg")
    def as_lazy(words: pl.LazyFrame) -> None:
        seen["lazy"] = words.collect().to_arrow()

    @dg.asset(ins={"words": dg.AssetIn(["gold", "words"], metadata={"columns": ["word"]})}, io_manager_key="iceberg")
    def one_column(words: pa.Table) -> None:
        assert words.column_names == ["word"]

    materialise(words, as_table, as_stream, as_frame, as_lazy, one_column)
    assert set(seen) == {"table", "stream", "frame", "lazy"}
    for name, found in seen.items():
        assert sorted(found.to_pylist(), key=str) == sorted(pa.table(ROWS).to_pylist(), key=str), name
    materialise(words)
    assert len(rows(lake, "gold.words")) == 3, "a second run replaces the table"


def test_what_the_ui_is_told(lake: Lakehouse) -> None:
    schema = pa.schema(
        [pa.field("word", pa.string(), metadata={"doc": "A word"}), pa.field("count", pa.int64(), nullable=False)]
    )

    lineage = dg.TableColumnLineage({"word": [dg.TableColumnDep(dg.AssetKey("text"), "content")]})

    @dg.asset(key_prefix="gold", io_manager_key="iceberg", metadata={"doc": "Words", "dagster/column_lineage": lineage})
    def words() -> pa.Table:
        return pa.table(ROWS, schema=schema)

    [event] = materialise(words).get_asset_materialization_events()
    found = {name: item.value for name, item in event.step_materialization_data.materialization.metadata.items()}
    assert found["dagster/row_count"] == 3
    assert found["rows_added"] == 3
    assert found["commits"] == 1
    assert found["dagster/table_name"] == "gold.words"
    assert found["iceberg/snapshot_id"] == str(lake.iceberg.snapshot_id("gold.words"))
    assert found["records_per_second"] > 0
    schema = found["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchema)
    assert [(column.name, column.type, column.description) for column in schema.columns] == [
        ("word", "string", "A word"),
        ("count", "int64", None),
    ]
    assert "| loaf | 3 |" in found["preview"]
    assert found["dagster/column_lineage"] == lineage


def test_append_and_merge(lake: Lakehouse) -> None:
    turn = iter([{"word": ["loaf", "crumb"], "count": [1, 1]}, {"word": ["loaf", "crust"], "count": [5, 2]}] * 2)

    @dg.asset(key_prefix="bronze", io_manager_key="iceberg", metadata={"write_mode": "append"})
    def log() -> pa.Table:
        return pa.table(next(turn))

    @dg.asset(key_prefix="silver", io_manager_key="iceberg", metadata={"write_mode": "merge", "key": "word"})
    def state() -> pa.Table:
        return pa.table(next(turn))

    for asset in (log, log, state, state):
        materialise(asset)
    assert [row["word"] for row in rows(lake, "bronze.log")] == ["crumb", "crust", "loaf", "loaf"]
    assert [tuple(row.values()) for row in rows(lake, "silver.state")] == [("crumb", 1), ("crust", 2), ("loaf", 5)]


@pytest.mark.parametrize("key", [(), ("day", "word")], ids=["no key", "key"])
@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us", tz="UTC"), pa.timestamp("us")], ids=str)
def test_a_run_replaces_its_days_only_and_in_one_snapshot(
    lake: Lakehouse, kind: pa.DataType, key: Sequence[str]
) -> None:
    said = ["first"]

    @dg.asset(
        key_prefix="bronze",
        io_manager_key="iceberg",
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata={"partition_expr": "day", "key": key},
    )
    def events(context: dg.AssetExecutionContext) -> pa.Table:
        days = [dt.datetime.fromisoformat(name) for name in context.partition_keys]
        if not pa.types.is_date(kind):
            days = [day + dt.timedelta(hours=23, minutes=59) for day in days]
        return pa.table({"day": pa.array(days).cast(kind), "word": said * len(days)})

    seen: list[tuple[str, list[str]]] = []

    @dg.asset(partitions_def=DAYS, io_manager_key="iceberg", ins={"events": dg.AssetIn(["bronze", "events"])})
    def daily(context: dg.AssetExecutionContext, events: pa.Table) -> None:
        seen.append((context.partition_key, [str(day)[:10] for day in events["day"].to_pylist()]))

    @dg.asset(io_manager_key="iceberg", ins={"events": dg.AssetIn(["bronze", "events"])})
    def whole(events: pl.LazyFrame) -> None:
        seen.append(("whole", sorted(str(day)[:10] for day in events.collect()["day"])))

    @dg.asset(partitions_def=DAYS, io_manager_key="iceberg", ins={"events": dg.AssetIn(["bronze", "events"])})
    def lazily(context: dg.AssetExecutionContext, events: pl.LazyFrame) -> None:
        seen.append((f"lazily {context.partition_key}", [str(day)[:10] for day in events.collect()["day"]]))

    def words() -> dict[str, str]:
        return {str(row["day"])[:10]: row["word"] for row in rows(lake, "bronze.events")}

    materialise(events, tags=over("2024-03-01", "2024-03-03"))
    assert words() == dict.fromkeys(["2024-03-01", "2024-03-02", "2024-03-03"], "first")
    said[0] = "second"
    before = len(lake.tables.history("bronze.events"))
    materialise(events, partition_key="2024-03-02")
    assert words() == {"2024-03-01": "first", "2024-03-02": "second", "2024-03-03": "first"}
    assert len(lake.tables.history("bronze.events")) == before + 1
    said[0] = "third"
    materialise(events, tags=over("2024-03-03", "2024-03-05"))
    assert words() == {
        "2024-03-01": "first",
        "2024-03-02": "second",
        **dict.fromkeys(["2024-03-03", "2024-03-04", "2024-03-05"], "third"),
    }
    assert len(lake.tables.history("bronze.events")) == before + 2
    materialise(events, daily, lazily, selection=[daily, lazily], partition_key="2024-03-03")
    materialise(events, whole, selection=[whole])
    assert seen == [
        ("2024-03-03", ["2024-03-03"]),
        ("lazily 2024-03-03", ["2024-03-03"]),
        ("whole", [f"2024-03-0{number}" for number in range(1, 6)]),
    ]


def test_static_partitions(lake: Lakehouse) -> None:
    @dg.asset(key_prefix="gold", io_manager_key="iceberg", partitions_def=KINDS, metadata={"partition_expr": "grain"})
    def loaves(context: dg.AssetExecutionContext) -> pl.DataFrame:
        return pl.DataFrame({"grain": [context.partition_key], "size": [len(context.run.tags)]})

    seen: list[list[str]] = []

    @dg.asset(partitions_def=KINDS, io_manager_key="iceberg", ins={"loaves": dg.AssetIn(["gold", "loaves"])})
    def sold(loaves: pl.DataFrame) -> None:
        seen.append(loaves["grain"].to_list())

    for kind in ("rye", "o'at", "rye"):
        materialise(loaves, partition_key=kind)
    assert [row["grain"] for row in rows(lake, "gold.loaves")] == ["o'at", "rye"]
    materialise(loaves, sold, selection=[sold], partition_key="o'at")
    assert seen == [["o'at"]]


def test_a_row_of_another_partition_is_refused(lake: Lakehouse) -> None:
    @dg.asset(key_prefix="gold", io_manager_key="iceberg", partitions_def=KINDS, metadata={"partition_expr": "grain"})
    def loaves() -> pa.Table:
        return pa.table({"grain": ["rye", "wheat"]})

    result = materialise(loaves, partition_key="rye", fails=True)
    assert "grain wheat lies outside of the partitions of this run" in failure(result)
    assert rows(lake, "gold.loaves") == []


def test_partitions_without_a_column_are_refused(lake: Lakehouse) -> None:
    @dg.asset(key_prefix="gold", io_manager_key="iceberg", partitions_def=KINDS)
    def loaves() -> pa.Table:
        return pa.table({"grain": ["rye"]})

    assert "say by which column in `partition_expr`" in failure(materialise(loaves, partition_key="rye", fails=True))


def test_vectors_are_merged_by_their_key(lake: Lakehouse) -> None:
    turn = iter([[("a", 1.0), ("b", 1.0)], [("b", 2.0), ("c", 2.0)]])

    @dg.asset(key_prefix="vectors", io_manager_key="lance", metadata={"key": "id"})
    def points() -> pa.Table:
        found = next(turn)
        vectors = pa.array([[value] * 4 for _, value in found], pa.list_(pa.float32(), 4))
        return pa.table({"id": [name for name, _ in found], "vector": vectors})

    seen: list[pl.DataFrame] = []

    @dg.asset(io_manager_key="lance", ins={"points": dg.AssetIn(["vectors", "points"])})
    def reader(points: pl.LazyFrame) -> None:
        seen.append(points.collect())

    materialise(points)
    [event] = materialise(points).get_asset_materialization_events()
    metadata = event.step_materialization_data.materialization.metadata
    assert metadata["dagster/row_count"].value == 3
    assert metadata["lance/version"].value == str(lake.vectors.version("vectors.points"))
    assert [(row["id"], row["vector"][0]) for row in rows(lake, "vectors.points", "id")] == [
        ("a", 1.0),
        ("b", 2.0),
        ("c", 2.0),
    ]
    materialise(points, reader, selection=[reader])
    assert sorted(seen[0]["id"]) == ["a", "b", "c"]


def test_what_is_no_frame_is_refused(lake: Lakehouse) -> None:
    @dg.asset(key_prefix="gold", io_manager_key="iceberg")
    def words() -> Any:
        return {"a": 1}

    assert "an asset returned a dict" in failure(materialise(words, fails=True))


@pytest.mark.parametrize(("error", "tries"), [(StoreError("away"), 3), (OSError("cut"), 3), (SourceError("bad"), 1)])
def test_only_what_may_pass_is_tried_again(
    lake: Lakehouse, error: Exception, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.io_managers._RETRY_SECONDS", 0)
    count = 0

    @dg.asset(key_prefix="gold", io_manager_key="iceberg")
    def words() -> Deltas:
        def parts() -> Iterator[Any]:
            nonlocal count
            count += 1
            raise error
            yield

        return Deltas(parts())

    assert str(error) in failure(materialise(words, fails=True))
    assert count == tries


def test_what_is_cancelled_is_not_tried_again(lake: Lakehouse) -> None:
    count = 0

    @dg.asset(key_prefix="gold", io_manager_key="iceberg")
    def words() -> Deltas:
        def parts() -> Iterator[Any]:
            nonlocal count
            count += 1
            raise KeyboardInterrupt
            yield

        return Deltas(parts())

    materialise(words, fails=True)
    assert count == 1


def test_a_preview_is_inert() -> None:
    text = preview(
        pa.table({"note": ["<script>x</script>|[a](javascript:x)\n# b `c` ![i](u) *d* _e_ \\", None], "n": [1.25, 0.1]})
    )
    lines = text.splitlines()
    assert len(lines) == 4, "a line break would end the row"
    assert lines[0] == "| note | n |"
    cell = lines[2]
    for character in "<>[]`*_":
        assert cell.count(character) == cell.count("\\" + character) > 0
    assert cell.count("|") - cell.count("\\|") == 3
    assert lines[3] == "|  | 0.1 |"


def test_a_preview_cuts_long_values_and_says_when_there_is_nothing() -> None:
    assert len(preview(pa.table({"note": ["x" * 5000]})).splitlines()[2]) < 100
    assert preview(pa.table({"note": pa.array([], pa.string())})) == "_no rows_"
