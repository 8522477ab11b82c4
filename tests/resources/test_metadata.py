"""What an asset shows of the table it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkm_pipelines.model.tables import PROCESSED_NOTES
from pkm_pipelines.operations.maintenance import maintain
from pkm_pipelines.operations.write import Written
from pkm_pipelines.storage import lance_index
from resources.metadata import table_metadata
from tests.support.lake import open_lake


def test_debt_and_how_vectors_are_searched(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = work / "vault"
    vault.mkdir()
    for number in range(300):
        (vault / f"{number}.md").write_text(f"# Note {number}\n\nAbout {number * 7} loaves and {number % 11} rolls.\n")
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        notes = table_metadata(lake, PROCESSED_NOTES.name, Written(PROCESSED_NOTES.name))
        assert (notes["debt/snapshots"], notes["debt/delete_files"]) == (1, 0)
        assert not any(name.startswith("index/") for name in notes)
        vectors = table_metadata(lake, "vectors.note_embeddings", Written("vectors.note_embeddings"))
        assert vectors["index/kind"] == "exact search"
        assert vectors["debt/unindexed_rows"] == 0
        monkeypatch.setattr(lance_index, "VECTOR_ROWS", 256)
        assert lake.vector_table is not None
        maintain(lake, "vectors", lake.vector_table)
        vectors = table_metadata(lake, "vectors.note_embeddings", Written("vectors.note_embeddings"))
        assert vectors["index/kind"] == "IVF_SQ"
        assert vectors["index/recall_at_10"] >= lance_index.MIN_RECALL
        assert vectors["index/rows_when_measured"] == 300
