"""A lakehouse over a vault in a temporary folder, and what it holds in a form that two of them can be compared in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pkm_pipelines.knowledge.metrics import PAGERANK_TOLERANCE
from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.settings import Settings

# What says when and in which order something was seen, and so differs between two roads to one state.
_ROAD = {
    "lsn", "ingested_at", "change_id", "changed_at", "ordinal", "version", "created_at", "iceberg_snapshot_id",
    "modified_at", "partition_date",
    "pagerank",  # may lag by a tolerance: see `same_ranks`
}  # fmt: skip
DERIVED = ("silver.processed_notes", "silver.extracted_concepts", "silver.knowledge_graph", "gold.note_metrics")


def lake_settings(home: Path, vault: Path, *, kind: str = "folder", **overrides: Any) -> Settings:
    """Settings of a lakehouse at `home` over one source, with the hashing embedder."""
    home.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "home": home,
        "sources": [{"name": "vault", "kind": kind, "path": str(vault)}],
        "embedder": {"model": "hashing"},
        "runtime_dir": home / "run",
        "state_service": {"idle_seconds": 20},
    }
    return Settings(**{**values, **overrides})


@contextmanager
def open_lake(home: Path, vault: Path, **overrides: Any) -> Iterator[Lakehouse]:
    """An open lakehouse of `lake_settings`."""
    with Lakehouse.open(lake_settings(home, vault, **overrides)) as lake:
        yield lake


def contents(lake: Lakehouse, *, alive_only: bool = True) -> dict[str, list[tuple[Any, ...]]]:
    """Every derived table as sorted rows, without the columns that depend on the road taken.

    Tombstones are left out, for a fresh build has none.
    """
    found = {name: _rows(lake.tables.read(name).read_all(), alive_only) for name in DERIVED}
    table = lake.vector_table
    if table is not None and lake.vectors.exists(table):
        batches = list(lake.vectors.read(table))
        found["vectors"] = _rows(pa.Table.from_batches(batches), alive_only) if batches else []
    return found


def _rows(table: pa.Table, alive_only: bool) -> list[tuple[Any, ...]]:
    rows = table.to_pylist()
    if alive_only and "deleted_at" in table.column_names:
        rows = [row for row in rows if row["deleted_at"] is None]
    names = sorted(set(table.column_names) - _ROAD)
    return sorted(tuple((name, _plain(row[name])) for name in names) for row in rows)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return repr([_plain(item) for item in value])
    return repr(value)


def snapshots(lake: Lakehouse) -> dict[str, int | None]:
    """The present snapshot of each table and version of the vectors."""
    found = {name: lake.iceberg.snapshot_id(name) for name in ("bronze.raw_notes", "bronze.raw_media", *DERIVED)}
    if lake.vector_table is not None and lake.vectors.exists(lake.vector_table):
        found["vectors"] = lake.vectors.version(lake.vector_table)
    return found


def named(tables: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[str]]:
    """Contents with each note called by its path, and without the ids made from its id.

    A note that was renamed keeps the id of the path it first had, which a fresh build cannot know.
    """
    paths = {}
    for row in tables["silver.processed_notes"]:
        values = dict(row)
        paths[values["note_id"]] = values["path"]
    return {
        table: sorted(
            repr([(name, paths.get(value, value)) for name, value in row if name not in ("edge_id", "chunk_id")])
            for row in rows
        )
        for table, rows in tables.items()
    }


def ranks(lake: Lakehouse) -> dict[str, float]:
    """The PageRank of each note, by path."""
    rows = lake.tables.read("gold.note_metrics", columns=["path", "pagerank"]).read_all().to_pylist()
    return {row["path"]: row["pagerank"] for row in rows}


def assert_same(lake: Lakehouse, fresh: Lakehouse) -> None:
    """The two hold the same, apart from ids and times; PageRanks are within the tolerance they are kept to."""
    found, wanted = named(contents(lake)), named(contents(fresh))
    assert found.keys() == wanted.keys()
    for table in wanted:
        assert found[table] == wanted[table], f"{table} differs"
    kept, exact = ranks(lake), ranks(fresh)
    assert kept.keys() == exact.keys()
    assert all(abs(kept[path] - exact[path]) <= PAGERANK_TOLERANCE for path in exact)
