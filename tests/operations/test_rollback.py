"""An input that was rolled back takes its outputs with it."""

from __future__ import annotations

from pathlib import Path

from pkm_pipelines.model.progress import NullProgress
from pkm_pipelines.operations.pipeline import DERIVED
from pkm_pipelines.operations.write import write_all
from tests.support.lake import assert_same, open_lake


def test_bronze_rolled_back(work: Path) -> None:
    vault = work / "vault"
    vault.mkdir()
    (vault / "Bread.md").write_text("# Bread\n\nOf [[Flour]].\n")
    with open_lake(work / "lake", vault) as lake, open_lake(work / "fresh", vault) as fresh:
        lake.update()
        fresh.update()
        good = lake.iceberg.snapshot_id("bronze.raw_notes")
        assert good is not None
        (vault / "Bread.md").write_text("# Bread\n\nA mistake.\n")
        (vault / "Flour.md").write_text("# Flour\n\nAnother.\n")
        lake.update()
        lake.tables.rollback("bronze.raw_notes", good)
        for table, operation in DERIVED.items():
            write_all(lake, table, operation(lake, progress=NullProgress()))
        assert_same(lake, fresh)
        assert lake.tables.read("silver.processed_notes").read_all().num_rows == 1
