"""The status: true before, between and after runs, and asking changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pkm_pipelines.model import keys
from pkm_pipelines.model.records import Problem
from tests.support.lake import open_lake, snapshots


@pytest.fixture
def vault(work: Path) -> Path:
    folder = work / "vault"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.md").write_text(f"# {name}\n\nSee [[a]].\n")
    return folder


def test_follows_a_lakehouse_from_nothing_to_current(work: Path, vault: Path) -> None:
    with open_lake(work / "home", vault) as lake:
        empty = lake.status()
        assert all((table.rows, table.snapshot_id, table.inputs) == (0, None, ()) for table in empty.tables)
        assert [(source.notes, source.pending) for source in empty.sources] == [(0, True)]
        assert lake.iceberg.names() == []

        lake.update()
        before = snapshots(lake)
        full = {table.name: table for table in lake.status().tables}
        assert full["bronze.raw_notes"].rows == full["silver.processed_notes"].rows == 2
        assert full["silver.processed_notes"].committed_at is not None
        assert all(table.is_current for table in full.values())
        assert [(source.notes, source.pending) for source in lake.status().sources] == [(2, False)]
        assert snapshots(lake) == before

        (vault / "c.md").write_text("# c\n")
        assert lake.status().sources[0].pending


def test_lag_counts_the_snapshots_that_were_not_read(work: Path, vault: Path) -> None:
    from pkm_pipelines.model.progress import NullProgress
    from pkm_pipelines.operations.ingest import ingest
    from pkm_pipelines.operations.write import write_all

    with open_lake(work / "home", vault) as lake:
        lake.update()
        for number in range(2):
            (vault / f"new{number}.md").write_text("new")
            write_all(lake, "bronze.raw_notes", ingest(lake, "notes", progress=NullProgress()))
        table = next(table for table in lake.status().tables if table.name == "silver.processed_notes")
        assert [(mark.input, mark.behind) for mark in table.inputs] == [("bronze.raw_notes", 2)]
        assert not table.is_current


def test_a_source_out_of_reach_is_reported(work: Path, vault: Path) -> None:
    with open_lake(work / "home", vault) as lake:
        lake.update()
        vault.rename(work / "elsewhere")
        (source,) = lake.status().sources
        assert source.pending is None and source.error
        assert source.notes == 2


def test_problems_of_one_source_or_of_all(work: Path, vault: Path) -> None:
    with open_lake(work / "home", vault) as lake:
        for source, path in (("vault", "a:b.md"), ("vault2", "x.md")):
            value = json.dumps([{"code": "bad", "message": "is odd"}]).encode()
            lake.state.put(keys.problem(source, path), value)
        assert lake.problems() == [
            Problem("vault", "a:b.md", "bad", "is odd"),
            Problem("vault2", "x.md", "bad", "is odd"),
        ]
        assert lake.status().problems == 2
        assert lake.status().sources[0].problems == 1
