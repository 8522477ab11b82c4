"""An input that was rolled back takes its outputs with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.errors import SnapshotNotFoundError
from pkm_pipelines.model.progress import NullProgress
from pkm_pipelines.operations.pipeline import DERIVED
from pkm_pipelines.operations.rollback import roll_back
from pkm_pipelines.operations.write import write_all
from tests.support.lake import assert_same, contents, lake_settings, named, open_lake
from tests.support.vaults import History


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


def files_of(vault: Path, files: dict[str, str]) -> None:
    for old in vault.rglob("*.*"):
        if old.relative_to(vault).as_posix() not in files:
            old.unlink()
    for name, text in files.items():
        (vault / name).write_text(text)


BEFORE = {"Bread.md": "Of [[Flour]].", "Rye.md": "Dark.", "Old.md": "It goes.", "Kept.md": "As ever.", "a.png": "1"}
AFTER = {
    "Bread.md": "A new text.",
    "Black rye.md": "Dark.",
    "New.md": "It comes.",
    "Kept.md": "As it was.",
    "a.png": "2",
}


def newest_media(lake: Lakehouse) -> dict[str, str]:
    rows = lake.tables.read("bronze.raw_media", columns=["path", "lsn", "content_hash"]).read_all().sort_by("lsn")
    return dict(zip(rows["path"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))


@pytest.mark.parametrize("kind", ["folder", "git"])
def test_what_bronze_forgot_is_told_again(work: Path, kind: str) -> None:
    vault = work / "vault"
    history = History(vault) if kind == "git" else None

    def become(files: dict[str, str]) -> None:
        if history is not None:
            history.commit(files)
        else:
            vault.mkdir(exist_ok=True)
            files_of(vault, files)

    with (
        Lakehouse.open(lake_settings(work / "lake", vault, kind=kind)) as lake,
        Lakehouse.open(lake_settings(work / "fresh", vault, kind=kind)) as fresh,
    ):
        become(BEFORE)
        lake.update()
        good = {table: lake.iceberg.snapshot_id(table) for table in ("bronze.raw_notes", "bronze.raw_media")}
        become(AFTER)
        lake.update()
        fresh.update()
        for table, snapshot in good.items():
            assert snapshot is not None
            assert roll_back(lake, table, snapshot) > 0
        assert not lake.is_current()
        lake.update()
        assert named(contents(lake)) == named(contents(fresh))
        assert newest_media(lake) == newest_media(fresh)
        assert lake.is_current()
        assert not any(written.commits for written in lake.update())


def test_no_way_back_to_what_is_no_ancestor(work: Path) -> None:
    vault = work / "vault"
    vault.mkdir()
    files_of(vault, BEFORE)
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        with pytest.raises(SnapshotNotFoundError):
            roll_back(lake, "bronze.raw_notes", 17)
        assert lake.is_current()
