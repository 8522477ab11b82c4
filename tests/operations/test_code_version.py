"""A table made by another version of the code is computed anew, and only what comes out different is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import EXTRACTED_CONCEPTS, KNOWLEDGE_GRAPH, NOTE_METRICS, PROCESSED_NOTES
from pkm_pipelines.operations import refine
from tests.support.lake import open_lake, snapshots


@pytest.fixture
def raise_version() -> Iterator[Callable[[TableSpec], None]]:
    raised: list[TableSpec] = []

    def change(spec: TableSpec) -> None:
        object.__setattr__(spec, "code_version", spec.code_version + 1)  # as an edit of model/tables.py would
        raised.append(spec)

    yield change
    for spec in raised:
        object.__setattr__(spec, "code_version", spec.code_version - 1)


def test_notes_are_parsed_again(
    work: Path, raise_version: Callable[[TableSpec], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = work / "vault"
    vault.mkdir()
    for name in ("Bread", "Flour"):
        (vault / f"{name}.md").write_text(f"# {name}\n\nOf [[Flour]].\n")
    parse = refine.parse_batch

    def parse_otherwise(batch: pa.RecordBatch, flavour_of: object) -> pa.RecordBatch:
        rows = parse(batch, flavour_of).to_pylist()
        for row in rows:
            row["title"] = "Loaf" if row["title"] == "Bread" else row["title"]
        return pa.RecordBatch.from_pylist(rows, schema=PROCESSED_NOTES.arrow)

    with open_lake(work / "lake", vault) as lake:
        lake.update()
        monkeypatch.setattr(refine, "parse_batch", parse_otherwise)
        lake.update()
        titles = lake.tables.read("silver.processed_notes", columns=["title"]).read_all()["title"].to_pylist()
        assert sorted(titles) == ["Bread", "Flour"]
        raise_version(PROCESSED_NOTES)
        assert not lake.is_current()
        written = {one.table: one for one in lake.update()}
        assert written["silver.processed_notes"].rows_updated == 1
        titles = lake.tables.read("gold.note_metrics", columns=["title"]).read_all()["title"].to_pylist()
        assert sorted(titles) == ["Flour", "Loaf"]
        assert lake.is_current()


@pytest.mark.parametrize("spec", [EXTRACTED_CONCEPTS, KNOWLEDGE_GRAPH, NOTE_METRICS], ids=lambda spec: spec.name)
def test_equal_rows_are_not_written(work: Path, raise_version: Callable[[TableSpec], None], spec: TableSpec) -> None:
    vault = work / "vault"
    vault.mkdir()
    (vault / "Bread.md").write_text("# Bread\n\nOf [[Flour]].\n")
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        raise_version(spec)
        assert not lake.is_current()
        written = {one.table: one for one in lake.update()}
        assert (written[spec.name].commits, written[spec.name].rows) == (1, 0)
        before = snapshots(lake)
        lake.update()
        assert snapshots(lake) == before
