"""Losing the state costs time and never data."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.lake import assert_same, contents, open_lake


def test_a_lost_state_is_rebuilt_from_the_tables(work: Path) -> None:
    vault = work / "vault"
    vault.mkdir()
    (vault / "Bread.md").write_text("# Bread\n\nOf [[Flour]], see ![[scale.png]].\n")
    (vault / "Flour.md").write_text("# Flour\n")
    (vault / "scale.png").write_bytes(b"a picture")
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        (vault / "Bread.md").rename(vault / "Loaf.md")  # so that its id is not that of its path
        lake.update()
        before = contents(lake)
        lake.state.stop_service()
    shutil.rmtree(work / "lake" / ".pkm" / "state")
    with open_lake(work / "lake", vault) as lake, open_lake(work / "fresh", vault) as fresh:
        lake.update()
        assert contents(lake) == before
        rows = lake.tables.read("bronze.raw_notes", columns=["note_id"]).read_all()
        assert len(rows["note_id"].unique()) == 2
        (vault / "Flour.md").write_text("# Flour\n\nFrom rye.\n")
        lake.update()
        fresh.update()
        assert lake.is_current()
        assert_same(lake, fresh)
