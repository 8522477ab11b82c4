"""Every check passes on a lakehouse that is right, and fails on one that is wrong in its way."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.records import Delta
from pkm_pipelines.operations import checks
from tests.support.lake import open_lake

ALL = [
    checks.change_ids_unique, checks.note_ids_unique, checks.bronze_and_silver_agree, checks.every_current_note_present,
    checks.concepts_unique, checks.edge_ids_unique, checks.no_orphan_edge, checks.metrics_cover_notes,
    checks.chunk_ids_unique, checks.every_note_embedded, checks.dimension_and_model_agree,
]  # fmt: skip


@pytest.fixture
def lake(work: Path) -> Iterator[Lakehouse]:
    vault = work / "vault"
    vault.mkdir()
    (vault / "Bread.md").write_text("# Bread\n\nOf [[Flour]].\n")
    (vault / "Flour.md").write_text("# Flour\n\nMilled.\n")
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        yield lake


def note_of(lake: Lakehouse, path: str) -> str:
    rows = lake.tables.read("silver.processed_notes", columns=["note_id", "path"]).read_all().to_pylist()
    return next(row["note_id"] for row in rows if row["path"] == path)


def drop(lake: Lakehouse, table: str, column: str, value: str) -> None:
    keys = pa.table({column: pa.array([value], pa.string())})
    lake.tables.write(Delta(table, (), "merge", str(uuid.uuid4()), delete_keys=keys))


def drop_chunks(lake: Lakehouse) -> None:
    table = lake.vector_table
    assert table is not None
    rows = pa.Table.from_batches(lake.vectors.lookup(table, "note_id", [note_of(lake, "Flour.md")], ["chunk_id"]))
    lake.vectors.write(Delta(table, (), "merge", str(uuid.uuid4()), delete_keys=rows))


def append_twice(lake: Lakehouse) -> None:
    """What no write of ours does: the same files again, by another engine."""
    table = lake.iceberg.load("bronze.raw_notes")
    table.append(lake.tables.read("bronze.raw_notes").read_all())


WRONG: dict[Callable[..., checks.Finding], Callable[[Lakehouse], object]] = {
    checks.change_ids_unique: append_twice,
    checks.bronze_and_silver_agree: lambda lake: drop(
        lake, "silver.processed_notes", "note_id", note_of(lake, "Flour.md")
    ),
    checks.every_current_note_present: lambda lake: drop(
        lake, "silver.processed_notes", "note_id", note_of(lake, "Flour.md")
    ),
    checks.no_orphan_edge: lambda lake: drop(lake, "silver.processed_notes", "note_id", note_of(lake, "Flour.md")),
    checks.metrics_cover_notes: lambda lake: drop(lake, "gold.note_metrics", "note_id", note_of(lake, "Flour.md")),
    checks.every_note_embedded: drop_chunks,
}


def test_all_pass_on_what_is_right(lake: Lakehouse) -> None:
    for check in ALL:
        finding = check(lake)
        assert finding.passed, finding
        assert finding.message


@pytest.mark.parametrize("check", WRONG, ids=lambda check: check.__name__)
def test_what_is_wrong_fails_with_an_example(lake: Lakehouse, check: Callable[..., checks.Finding]) -> None:
    WRONG[check](lake)
    finding = check(lake)
    assert not finding.passed
    assert finding.count == len(finding.examples) > 0
