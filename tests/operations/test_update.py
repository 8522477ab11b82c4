"""The road from a vault to the vectors: nothing for no change, and each edit at its own cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pkm_pipelines.lakehouse import Lakehouse
from tests.support.lake import assert_same, contents, open_lake, snapshots

NOTES = {
    "Bread.md": "---\ntags: [baking]\n---\n# Bread\n\nBread needs [[Flour]] and [[Water]], and patience.\n",
    "Flour.md": "# Flour\n\nMilled from wheat. See [[Bread#Crumb]] and #grain/wheat.\n",
    "Water.md": "# Water\n\nSoft water suits [[Tea]].\n",
    "Notes/Salt.md": "# Salt\n\nSalt tightens the gluten of [[bread]].\n\n![[scale.png]]\n",
}


@pytest.fixture
def vault(work: Path) -> Path:
    root = work / "vault"
    for name, text in NOTES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "scale.png").write_bytes(b"\x89PNG a picture")
    return root


def edges(lake: Lakehouse, kind: str = "link") -> set[tuple[str, str, str]]:
    paths = {row["note_id"]: row["path"] for row in lake.tables.read("silver.processed_notes").read_all().to_pylist()}
    rows = lake.tables.read("silver.knowledge_graph").read_all().to_pylist()
    return {(paths[row["src"]], row["raw_target"], row["status"]) for row in rows if row["kind"] == kind}


def test_a_vault_becomes_tables(work: Path, vault: Path) -> None:
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        notes = lake.tables.read("silver.processed_notes").read_all().to_pylist()
        assert {note["path"] for note in notes} == set(NOTES)
        assert edges(lake) == {
            ("Bread.md", "Flour", "resolved"),
            ("Bread.md", "Water", "resolved"),
            ("Flour.md", "Bread#Crumb", "resolved"),
            ("Water.md", "Tea", "broken"),
            ("Notes/Salt.md", "bread", "resolved"),
        }
        assert edges(lake, "embed") == {("Notes/Salt.md", "scale.png", "resolved")}
        metrics = {row["path"]: row for row in lake.tables.read("gold.note_metrics").read_all().to_pylist()}
        assert metrics["Bread.md"]["in_degree"] == 2
        assert metrics["Water.md"]["broken_links"] == 1


def test_running_twice_writes_nothing(work: Path, vault: Path) -> None:
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        before = snapshots(lake)
        assert lake.is_current()
        written = lake.update()
        assert snapshots(lake) == before
        assert [(w.table, w.commits) for w in written if w.commits] == []


EDITS: dict[str, Callable[[Path], object]] = {
    "prose": lambda root: (root / "Water.md").write_text("# Water\n\nHard water suits [[Tea]] as well.\n"),
    "links": lambda root: (root / "Water.md").write_text("# Water\n\nNow of [[Flour]] and [[Notes/Salt]].\n"),
    "a note that was missing": lambda root: (root / "Tea.md").write_text("# Tea\n\nNeeds [[Water]].\n"),
    "delete": lambda root: (root / "Flour.md").unlink(),
    "rename": lambda root: (root / "Flour.md").rename(root / "Meal.md"),
    "case": lambda root: (root / "Flour.md").rename(root / "flour.md"),
    "folder moved": lambda root: (root / "Notes").rename(root / "Kitchen"),
    "attachment gone": lambda root: (root / "scale.png").unlink(),
    "title": lambda root: (root / "Water.md").write_text("---\ntitle: Wasser\naliases: [patience]\n---\nSoft.\n"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_ends_as_a_fresh_build_would(work: Path, vault: Path, edit: str) -> None:
    with open_lake(work / "lake", vault) as lake, open_lake(work / "fresh", vault) as fresh:
        lake.update()
        EDITS[edit](vault)
        lake.update()
        assert lake.is_current()
        fresh.update()
        assert_same(lake, fresh)


def test_a_note_comes_back(work: Path, vault: Path) -> None:
    text = (vault / "Flour.md").read_bytes()
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        before = contents(lake)
        (vault / "Flour.md").unlink()
        lake.update()
        assert "broken" in {status for path, target, status in edges(lake) if (path, target) == ("Bread.md", "Flour")}
        assert not any(hit.path == "Flour.md" for hit in lake.search("milled from wheat"))
        (vault / "Flour.md").write_bytes(text)
        lake.update()
        assert contents(lake) == before


def test_only_the_edited_note_is_rewritten(work: Path, vault: Path) -> None:
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        EDITS["prose"](vault)
        written = {w.table.split("__")[0]: w for w in lake.update()}
        assert written["silver.processed_notes"].rows_updated == 1
        assert written["silver.processed_notes"].rows == 1
        assert written["silver.knowledge_graph"].rows == 0 or written["silver.knowledge_graph"].rows == 1
        assert written["gold.note_metrics"].rows == 1
        assert written["vectors.note_embeddings"].rows == 2  # the old chunk goes, the new one comes
