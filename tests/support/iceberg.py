"""Warehouses over every kind of catalog for the tests, and small tables to fill them with."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pkm_pipelines.model.records import CommitResult, Delta
from pkm_pipelines.model.schema import TIMESTAMP, Column, PartitionField, TableSpec
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.location import Location
from pkm_pipelines.tables.manager import TableManager
from tests.support.postgres import Postgres
from tests.support.rest_catalog import serve
from tests.support.s3 import S3Endpoint

STATE = TableSpec(
    layer="silver",
    table="things",
    doc="Things by id.",
    kind="state",
    key=("id",),
    order=("changed", "lsn"),
    partition=(PartitionField("id", "bucket[4]"),),
    sort=("id",),
    columns=(
        Column(1, "id", pa.string(), "The thing", True),
        Column(2, "group", pa.string(), "What it belongs to"),
        Column(3, "value", pa.int64(), "A number"),
        Column(4, "names", pa.list_(pa.string()), "Its names"),
        Column(5, "parts", pa.list_(pa.struct([("name", pa.string()), ("size", pa.float64())])), "Its parts"),
        Column(6, "changed", TIMESTAMP, "When it changed", True),
        Column(7, "lsn", pa.int64(), "Breaks ties", True),
    ),
)

# Its key is not what it is partitioned by, but decides it; and it has no order: whoever comes last wins.
EDGES = TableSpec(
    layer="silver",
    table="edges",
    doc="Edges of things.",
    kind="state",
    key=("id", "kind"),
    determined=("src",),
    partition=(PartitionField("src", "bucket[4]"),),
    sort=("src", "id"),
    columns=(
        Column(1, "id", pa.string(), "The edge", True),
        Column(2, "kind", pa.string(), "Its kind", True),
        Column(3, "src", pa.string(), "Where it starts", True),
        Column(4, "dst", pa.string(), "Where it ends"),
    ),
)

LOG = TableSpec(
    layer="bronze",
    table="events",
    doc="What happened to things.",
    kind="log",
    key=("change_id",),
    partition=(PartitionField("day", "month"),),
    sort=("changed",),
    columns=(
        Column(1, "change_id", pa.string(), "The change", True),
        Column(2, "id", pa.string(), "The thing", True),
        Column(3, "value", pa.int64(), "A number"),
        Column(4, "changed", TIMESTAMP, "When", True),
        Column(5, "day", pa.date32(), "Which day", True),
    ),
)

CATALOGS = ("sqlite", "s3", "postgres", "rest", "glue")
EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = EPOCH.date()


@dataclass(frozen=True)
class Place:
    """Where a warehouse is; enough to open it in another process."""

    warehouse: str
    catalog: str

    def open(self) -> IcebergStore:
        return IcebergStore(Location(self.warehouse), self.catalog)


@pytest.fixture(params=CATALOGS)
def place(request: pytest.FixtureRequest, work: Path) -> Iterator[Place]:
    """An empty warehouse over each kind of catalog: SQLite, SQLite with S3, PostgreSQL, REST, and Glue with S3."""
    warehouse, catalog = (work / "warehouse").as_uri(), f"sqlite:///{work / 'catalog.db'}"
    if request.param == "s3":
        endpoint: S3Endpoint = request.getfixturevalue("s3_endpoint")
        warehouse = endpoint.location().url
    elif request.param == "glue":
        yield request.getfixturevalue("glue")
        return
    elif request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        catalog = server.database()
    elif request.param == "rest":
        with serve(Place(warehouse, catalog).open().catalog) as url:
            yield Place(warehouse, url)
        return
    yield Place(warehouse, catalog)


@pytest.fixture
def glue(s3_endpoint: S3Endpoint) -> Place:
    """An empty warehouse on S3 over Glue. The test server has one catalog for all tests, so it is emptied first."""
    place = Place(s3_endpoint.location().url, "glue://")
    store = place.open()
    for name in store.names():
        store.catalog.drop_table(name)
    return place


@pytest.fixture
def store(place: Place) -> IcebergStore:
    """An empty warehouse over each kind of catalog."""
    return place.open()


@pytest.fixture
def local(work: Path) -> Place:
    """An empty warehouse on local disk with a SQLite catalog."""
    return local_place(work)


@pytest.fixture
def tables(local: Place) -> TableManager:
    """A table manager over an empty local warehouse, with the tables of this module made."""
    manager = TableManager(local.open())
    for spec in (STATE, EDGES, LOG):
        manager.ensure(spec)
    return manager


def local_place(folder: Path) -> Place:
    """A warehouse in a folder."""
    return Place((folder / "warehouse").as_uri(), f"sqlite:///{folder / 'catalog.db'}")


def thing(id: str, value: int | None = 0, lsn: int = 0, **columns: Any) -> dict[str, Any]:
    """A row of `STATE` that changed `lsn` seconds after the epoch."""
    return {"id": id, "value": value, "changed": EPOCH + dt.timedelta(seconds=lsn), "lsn": lsn, **columns}


def event(change_id: str, value: int = 0, day: dt.date = DAY, **columns: Any) -> dict[str, Any]:
    """A row of `LOG`."""
    return {"change_id": change_id, "id": "x", "value": value, "changed": EPOCH, "day": day, **columns}


def edge(id: str, src: str, dst: str | None = None, kind: str = "link") -> dict[str, Any]:
    """A row of `EDGES`."""
    return {"id": id, "kind": kind, "src": src, "dst": dst}


def batch(spec: TableSpec, rows: Iterable[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows as a record batch of the table; what a row lacks is null."""
    return pa.RecordBatch.from_pylist([dict(row) for row in rows], schema=spec.arrow)


def delta(spec: TableSpec, rows: Sequence[Mapping[str, Any]] = (), mode: Any = "merge", **options: Any) -> Delta:
    """A delta of these rows with an operation id of its own."""
    options.setdefault("op_id", str(uuid.uuid4()))
    return Delta(table=spec.name, rows=[batch(spec, rows)] if rows else [], mode=mode, **options)


def write(
    tables: TableManager, spec: TableSpec, rows: Sequence[Mapping[str, Any]] = (), mode: Any = "merge", **options: Any
) -> CommitResult:
    """Write rows in one commit."""
    return tables.write(delta(spec, rows, mode, **options))


def contents(tables: TableManager, spec: TableSpec, **how: Any) -> dict[Any, dict[str, Any]]:
    """The rows of a table by key; fails if a key stands twice."""
    rows = tables.read(spec.name, **how).read_all().to_pylist()
    found = {key_of(spec, row): row for row in rows}
    assert len(found) == len(rows), "a key stands more than once"
    return found


def key_of(spec: TableSpec, row: Mapping[str, Any]) -> Any:
    """The key of a row: a value, or a tuple of several."""
    key = tuple(row[name] for name in spec.key)
    return key if len(key) > 1 else key[0]


def file_paths(tables: TableManager, spec: TableSpec) -> set[str]:
    """The data files that the table holds now."""
    return {task.file.file_path for task in tables.iceberg.load(spec.name).scan().plan_files()}
