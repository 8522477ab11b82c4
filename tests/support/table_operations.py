"""Random operations on small tables of every kind, each with what it does to a dictionary."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
from hypothesis import strategies as st

from pkm_pipelines.model.progress import NullProgress
from pkm_pipelines.model.records import Slice
from pkm_pipelines.model.schema import Column, PartitionField, TableSpec
from pkm_pipelines.operations.maintain_tables import maintain_table
from pkm_pipelines.operations.maintenance import Report
from pkm_pipelines.settings import MaintenanceSettings, Settings
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.tables.manager import TableManager
from pkm_pipelines.tables.overwrite import OverwritePlan
from pkm_pipelines.tables.plan import DeferredPlan
from tests.support.dict_state import DictState
from tests.support.filters import Filter, filters
from tests.support.iceberg import DAY, EDGES, LOG, STATE, batch, delta, edge, event, thing
from tests.support.table_history import Effect, Operation
from tests.support.table_model import Compaction, Row, Rows, full, merged, newest

if TYPE_CHECKING:
    from pkm_pipelines.operations.stores import Stores

# A table without a key. Its `number` is unique only so that a dictionary can hold its rows.
LINES = TableSpec(
    layer="silver",
    table="lines",
    doc="Rows that nobody tells apart.",
    kind="log",
    key=(),
    partition=(PartitionField("group", "identity"),),
    columns=(
        Column(1, "number", pa.int64(), "Which", True),
        Column(2, "group", pa.string(), "What it belongs to"),
        Column(3, "value", pa.int64(), "A number"),
    ),
)


# What may run beside writers at any time, and with them what may run alone when nothing has an age.
BESIDE_WRITERS = ("compact", "expire", "manifests", "stats")
MAINTENANCE = (*BESIDE_WRITERS, "orphans")
_NUMBERS = itertools.count()


@cache
def _eager_settings() -> Settings:
    """Little is kept, and nothing is young."""
    eager = MaintenanceSettings(keep_snapshots=3, file_grace_minutes=0, orphan_age_hours=0)
    return Settings(home=Path("/nowhere"), maintenance=eager)


def _flat(spec: TableSpec) -> TableSpec:
    return replace(spec, partition=(), determined=())


@dataclass(frozen=True)
class Kind:
    """A kind of table: its spec, what a row is told apart by in the model, and its random operations."""

    spec: TableSpec
    operations: Callable[[TableSpec, Rows], st.SearchStrategy[Operation]]
    key: tuple[str, ...] = ()
    partitions: tuple[tuple[PartitionField, ...], ...] = ((),)

    @property
    def model(self) -> TableSpec:
        """The spec with the key by which the model tells rows apart."""
        return replace(self.spec, key=self.key or self.spec.key)


IDS = st.sampled_from([f"id{number}" for number in range(12)])
GROUPS = st.sampled_from(["red", "green", None])
THINGS = st.lists(
    st.builds(
        lambda id, value, lsn, group, names: thing(id, value, lsn, group=group, names=names),
        IDS,
        st.integers(0, 2),
        st.integers(0, 5),
        GROUPS,
        st.sampled_from([None, [], ["a", None]]),
    ),
    max_size=6,
)
ONE_EACH = THINGS.map(lambda rows: list({row["id"]: row for row in rows}.values()))
SOURCES = st.sampled_from(["a", "b", "c", "d"])
EDGE_ROWS = st.lists(
    st.builds(
        lambda src, number, kind, dst: edge(f"{src}{number}", src, dst, kind),
        SOURCES,
        st.integers(0, 3),
        st.sampled_from(["link", "tag"]),
        st.sampled_from([None, "x", "y"]),
    ),
    max_size=6,
)
# The month is part of what an event is: the same event lies in the same partition.
EVENTS = st.lists(
    st.builds(lambda n, v: event(f"c{n}", v, DAY.replace(month=1 + n % 3)), st.integers(0, 40), st.integers(0, 3)),
    max_size=6,
)
MARKS = st.dictionaries(st.sampled_from(["one", "two"]), st.integers(1, 4), max_size=1)


def writing(
    name: str, spec: TableSpec, rows: Sequence[Row], effect: Effect, mode: str = "merge", **options: Any
) -> Operation:
    """A delta, made anew whenever the operation is carried out."""

    def run(manager: TableManager, op_id: str, branch: str) -> Any:
        return manager.write(delta(spec, rows, mode, op_id=op_id, **options), branch=branch)

    told = {key: value for key, value in options.items() if value}
    return Operation(f"{name} {list(rows)} {told or ''}".rstrip(), run, effect, options.get("watermarks") or {})


def merges(spec: TableSpec, rows: st.SearchStrategy[list[Row]]) -> st.SearchStrategy[Operation]:
    """Rows by their key; sometimes with a mark."""
    return st.builds(
        lambda given, marks: writing("merge", spec, given, lambda now: merged(spec, now, given), watermarks=marks),
        rows,
        MARKS,
    )


def replacements(
    spec: TableSpec, rows: st.SearchStrategy[list[Row]], column: str, values: st.SearchStrategy[str]
) -> st.SearchStrategy[Operation]:
    """The whole table, or the rows of some values of a column, replaced."""

    def build(given: list[Row], chosen: set[str] | None) -> Operation:
        wanted = newest(spec, given)
        if chosen is None:
            return writing("replace", spec, given, lambda _: wanted, "replace")
        part = Slice(column, tuple(sorted(chosen)))
        return writing(
            "replace a part",
            spec,
            given,
            lambda now: {**_without(now, column, chosen), **wanted},
            "replace",
            replace_where=part,
        )

    return st.builds(build, rows, st.none() | st.sets(values, min_size=1, max_size=2))


def deletions(
    spec: TableSpec, present: Rows, names: Sequence[str], rows: st.SearchStrategy[list[Row]]
) -> st.SearchStrategy[Operation]:
    """Keys of present rows and of none, deleted, with some rows that come in the same commit."""

    def build(doomed: list[Any], given: list[Row]) -> Operation:
        keys = [key if isinstance(key, tuple) else (key,) for key in doomed]
        table = pa.table({name: pa.array([key[i] for key in keys], pa.string()) for i, name in enumerate(names)})
        gone = set(doomed) - set(newest(spec, given))
        return writing(
            "delete and merge",
            spec,
            given,
            lambda now: merged(spec, {k: row for k, row in now.items() if k not in gone}, given),
            delete_keys=table,
        )

    known = sorted(present) or [("a9", "link") if len(names) > 1 else "id99"]
    return st.builds(build, st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True), rows | st.just([]))


def deletions_by_filter(spec: TableSpec, **columns: st.SearchStrategy[Any]) -> st.SearchStrategy[Operation]:
    """The rows that match any filter over some columns, deleted; `columns` are the values they are compared with."""
    return replacements_by_filter(spec, st.just([]), **columns)


def replacements_by_filter(
    spec: TableSpec, rows: st.SearchStrategy[list[Row]], **columns: st.SearchStrategy[Any]
) -> st.SearchStrategy[Operation]:
    """The rows that match any filter, replaced; as the manager does it, with an operation id of the test's own."""

    def build(where: Filter, given: list[Row], memory_bytes: int) -> Operation:
        def run(manager: TableManager, op_id: str, branch: str) -> Any:
            rows = [batch(spec, given)] if given else []
            plan = DeferredPlan(lambda _: OverwritePlan(rows, where.expression, memory_bytes))
            return commit(manager.iceberg, spec.name, plan, op_id=op_id, branch=branch)

        def effect(now: Rows) -> Rows:
            return {**{key: row for key, row in now.items() if not where.matches(row)}, **newest(spec, given)}

        return Operation(f"{'replace' if given else 'delete'} where {where} {given or ''}".rstrip(), run, effect)

    return st.builds(build, filters(columns), rows, st.sampled_from([2_000, 1 << 20]))


def things(spec: TableSpec, present: Rows, rows: st.SearchStrategy[list[Row]] = THINGS) -> st.SearchStrategy[Operation]:
    return st.one_of(
        merges(spec, rows),
        replacements(spec, rows, "group", GROUPS.filter(bool)),
        deletions(spec, present, ["id"], rows),
        deletions_by_filter(spec, id=IDS, group=GROUPS.filter(bool), value=st.integers(0, 2)),
    )


def edges(spec: TableSpec, present: Rows) -> st.SearchStrategy[Operation]:
    def of_sources(given: list[Row], sources: set[str]) -> Operation:
        wanted = newest(spec, given)
        return writing(
            "replace the edges of sources",
            spec,
            given,
            lambda now: merged(spec, {k: r for k, r in now.items() if r["src"] not in sources or k in wanted}, given),
            replace_slice=("src", tuple(sorted(sources))),
        )

    return st.one_of(
        merges(spec, EDGE_ROWS),
        deletions(spec, present, ["id", "kind"], EDGE_ROWS),
        st.builds(of_sources, EDGE_ROWS, st.sets(SOURCES, max_size=2)),
        deletions_by_filter(spec, src=SOURCES, dst=st.sampled_from(["x", "y"])),
    )


def events(spec: TableSpec, present: Rows) -> st.SearchStrategy[Operation]:
    def append(given: list[Row], marks: dict[str, int]) -> Operation:
        first: Rows = {}
        for row in given:
            first.setdefault(row["change_id"], full(spec, row))
        return writing("append", spec, given, lambda now: {**first, **now}, "append", watermarks=marks)

    days = st.sampled_from([DAY.replace(month=month) for month in (1, 2, 3)])
    return st.builds(append, EVENTS, MARKS) | deletions_by_filter(spec, day=days, value=st.integers(0, 3))


def lines(spec: TableSpec, present: Rows) -> st.SearchStrategy[Operation]:
    # No number comes twice, so numbers are counted and not drawn.
    rows = st.lists(
        st.builds(
            lambda group, value: {"number": next(_NUMBERS), "group": group, "value": value},
            GROUPS,
            st.integers(0, 2) | st.none(),
        ),
        max_size=6,
    )

    def append(given: list[Row], marks: dict[str, int]) -> Operation:
        new = newest(spec, given)
        return writing("append", spec, given, lambda now: {**now, **new}, "append", watermarks=marks)

    known = GROUPS.filter(bool)
    return st.one_of(
        st.builds(append, rows, MARKS),
        replacements(spec, rows, "group", known),
        replacements_by_filter(spec, rows, group=known, value=st.integers(0, 2)),
    )


def maintaining(name: str, table: str, state: DictState) -> Operation:
    """An operation of maintenance, as eager as can be; `state` is where it writes down how far it is."""

    def run(manager: TableManager, op_id: str, branch: str) -> Report:
        settings = _eager_settings()
        stores = SimpleNamespace(iceberg=manager.iceberg, tables=manager, state=state, settings=settings)
        return maintain_table(cast("Stores", stores), name, table, progress=NullProgress(), run_id="")

    return Operation(name, run)


def maintenance(spec: TableSpec, state: DictState, names: Sequence[str] = MAINTENANCE) -> st.SearchStrategy[Operation]:
    """What changes no row of the present; `pack` makes one file of each partition, whatever its size."""

    def pack(manager: TableManager, op_id: str, branch: str) -> Any:
        return commit(manager.iceberg, spec.name, Compaction(), op_id=op_id)

    known = [Operation("pack", pack), *(maintaining(name, spec.name, state) for name in names)]
    return st.sampled_from(known)


def _without(rows: Rows, column: str, values: set[str]) -> Rows:
    return {key: row for key, row in rows.items() if row[column] not in values}


_THINGS = ((PartitionField("id", "bucket[4]"),), (PartitionField("group", "identity"),), ())
_EDGES = ((PartitionField("src", "bucket[4]"),), (PartitionField("src", "truncate[1]"),), ())
_EVENTS = ((PartitionField("day", "month"),), (PartitionField("day", "day"),), ())
_LINES = ((PartitionField("group", "identity"),), ())

KINDS = {
    "things": Kind(STATE, things, partitions=_THINGS),
    "things, flat": Kind(_flat(STATE), things, partitions=_THINGS),
    # A key may lie in any of its partitions.
    "things by group": Kind(replace(STATE, partition=_THINGS[1]), things, partitions=_THINGS),
    "edges": Kind(EDGES, edges, partitions=_EDGES),
    "edges, flat": Kind(_flat(EDGES), edges, partitions=_EDGES),
    "events": Kind(LOG, events, partitions=_EVENTS),
    "events, flat": Kind(_flat(LOG), events, partitions=_EVENTS),
    "lines": Kind(LINES, lines, ("number",), _LINES),
    "lines, flat": Kind(_flat(LINES), lines, ("number",), _LINES),
}
