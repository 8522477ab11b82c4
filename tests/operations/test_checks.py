"""Every check passes on a lakehouse that is right, and fails on one that is wrong in its way."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.progress import NullProgress
from pkm_pipelines.model.records import Delta
from pkm_pipelines.operations import checks
from pkm_pipelines.operations.ingest import ingest
from pkm_pipelines.operations.refine import refine_notes
from pkm_pipelines.operations.vectorise import embed_notes
from pkm_pipelines.operations.write import write_all
from tests.support.lake import open_lake
from tests.support.vaults import History

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


def drop_chunks(lake: Lakehouse, path: str = "Flour.md") -> None:
    table = lake.vector_table
    assert table is not None
    rows = pa.Table.from_batches(lake.vectors.lookup(table, "note_id", [note_of(lake, path)], ["chunk_id"]))
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


def test_odd_files_are_told_of_and_are_no_missing_notes(work: Path) -> None:
    vault = work / "odd"
    vault.mkdir()
    (work / "outside.md").write_text("# Outside\n")
    (vault / "Bread.md").write_text("# Bread\n")
    (vault / "Empty.md").write_text("")
    (vault / "Old.md").write_text("# Old\n")
    (vault / "Bread.sync-conflict-20240102-101112-ABCDEFG.md").write_text("# Bread\n\nOf two.\n")
    (vault / "Link.md").symlink_to(work / "outside.md")
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        (vault / "Old.md").unlink()
        lake.update()
        for check in ALL:
            assert check(lake).passed, check(lake)
        finding = checks.every_current_note_present(lake)
        assert finding.message == "all 2 current notes are in silver; 2 files are left out for what is odd about them"
        assert finding.count == 0
        conflict, link = sorted(finding.examples)
        assert conflict.startswith("vault: Bread.sync-conflict-20240102-101112-ABCDEFG.md: conflict-copy (")
        assert link.startswith("vault: Link.md: symlink-outside (")
        assert lake.status().sources[0].notes == 2


def test_a_note_that_a_repository_cannot_give_is_odd(work: Path) -> None:
    history = History(work / "history.git")
    history.commit({"Bread.md": "# Bread\n", "Long.md": "Word. " * 100})
    source = {"name": "vault", "kind": "git", "path": str(work / "history.git"), "max_note_bytes": 100}
    with open_lake(work / "lake", work, sources=[source]) as lake:
        lake.update()
        finding = checks.every_current_note_present(lake)
        assert finding.passed, finding
        [example] = finding.examples
        assert example.startswith("vault: Long.md: too-large (")


def test_what_is_missing_says_why(lake: Lakehouse, work: Path) -> None:
    def why(check: Callable[..., checks.Finding]) -> list[str]:
        found = check(lake)
        assert not found.passed
        return [example.removeprefix("vault: Rye.md: ").partition(":")[0] for example in found.examples]

    progress = NullProgress()
    (work / "vault" / "Rye.md").write_text("# Rye\n")
    write_all(lake, "bronze.raw_notes", ingest(lake, "notes", progress=progress))
    assert why(checks.every_current_note_present) == ["not parsed yet"]
    write_all(lake, "silver.processed_notes", refine_notes(lake, progress=progress))
    assert why(checks.every_note_embedded) == ["not embedded yet"]
    write_all(lake, "vectors.note_embeddings", embed_notes(lake, progress=progress))
    assert checks.every_note_embedded(lake).passed
    drop_chunks(lake, "Rye.md")
    assert why(checks.every_note_embedded) == ["lost"]


def test_a_note_that_its_table_has_lost_says_so(lake: Lakehouse) -> None:
    drop(lake, "silver.processed_notes", "note_id", note_of(lake, "Flour.md"))
    [example] = checks.every_current_note_present(lake).examples
    assert example.startswith("vault: Flour.md: lost: ")
    lake.iceberg.load("bronze.raw_notes").delete("path = 'Flour.md'")
    [example] = checks.every_current_note_present(lake).examples
    assert example.startswith("vault: Flour.md: not read yet: ")
