"""What an edit costs in a real vault: the garden of 749 notes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.operations.write import Written
from tests.support.lake import DERIVED, assert_same, open_lake


@pytest.fixture(scope="module")
def garden(ram_folder: Path, shared_data: Path) -> Iterator[tuple[Lakehouse, Path]]:
    vault = ram_folder / "garden"
    shutil.copytree(shared_data / "vaults" / "jackyzha0-garden", vault)
    with open_lake(ram_folder / "garden-lake", vault) as lake:
        lake.update()
        yield lake, vault


def rows(lake: Lakehouse, table: str) -> dict[Any, dict[str, Any]]:
    key = {"silver.extracted_concepts": "concept", "silver.knowledge_graph": "edge_id"}.get(table, "note_id")
    found = lake.tables.read(table).read_all().to_pylist()
    return {(row.get("note_id") or row.get("src"), row[key]): row for row in found}


def chunks(lake: Lakehouse) -> dict[str, dict[str, Any]]:
    assert lake.vector_table is not None
    columns = ["chunk_id", "note_id", "path", "created_at", "text"]
    batches = lake.vectors.read(lake.vector_table, columns=columns)
    return {row["chunk_id"]: row for row in pa.Table.from_batches(batches).to_pylist()}


def touched(before: dict[Any, Any], after: dict[Any, Any]) -> set[Any]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def test_an_edit_of_prose_rewrites_the_rows_of_its_note_alone(garden: tuple[Lakehouse, Path]) -> None:
    lake, vault = garden
    before = {table: rows(lake, table) for table in DERIVED}
    vectors = chunks(lake)
    note = vault / "thoughts" / "trust.md"
    note.write_text(note.read_text(encoding="utf-8") + "\nZymurgy asks for patience more than for skill.\n")
    written = by_table(lake.update())
    after = {table: rows(lake, table) for table in DERIVED}
    [note_id] = {
        row["note_id"] for row in after["silver.processed_notes"].values() if row["path"] == "thoughts/trust.md"
    }
    for table in DERIVED:
        changed = touched(before[table], after[table])
        assert {note for note, _ in changed} <= {note_id}, table
        assert written[table].rows == len(changed), table
    now = chunks(lake)
    new = now.keys() - vectors.keys()
    assert 1 <= len(new) <= 2
    assert {now[chunk]["note_id"] for chunk in new} == {note_id}
    kept = now.keys() & vectors.keys()
    assert all(
        now[chunk]["created_at"] == vectors[chunk]["created_at"] for chunk in kept if now[chunk]["note_id"] != note_id
    )
    assert lake.search("zymurgy", k=3, mode="text")[0].path == "thoughts/trust.md"


def test_an_edit_of_links_rewrites_the_rows_whose_value_changed(garden: tuple[Lakehouse, Path], work: Path) -> None:
    lake, vault = garden
    before = {table: rows(lake, table) for table in DERIVED}
    note = vault / "thoughts" / "causality.md"
    note.write_text(note.read_text(encoding="utf-8") + "\nCompare [[thoughts/trust]] and [[thoughts/nowhere yet]].\n")
    written = by_table(lake.update())
    after = {table: rows(lake, table) for table in DERIVED}
    for table in DERIVED:
        assert written[table].rows == len(touched(before[table], after[table])), table
    assert len(touched(before["silver.knowledge_graph"], after["silver.knowledge_graph"])) == 2
    with open_lake(work / "fresh", vault) as fresh:
        fresh.update()
        assert_same(lake, fresh)


def by_table(written: list[Written]) -> dict[str, Written]:
    return {one.table: one for one in written}
