"""Sources come and go: what one of them has lost, or that it is no more in the settings, stops no other."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.errors import SourceError
from tests.support.lake import lake_settings
from tests.support.location import code_location
from tests.support.vaults import write_vault


@pytest.fixture
def vaults(work: Path) -> dict[str, Path]:
    logseq = {
        "logseq/config.edn": "{}",
        "pages/Rye.md": "- a block\n  id:: 64a1b2c3-0000-4000-8000-000000000001\n",
        "pages/Sour.md": "- see ((64a1b2c3-0000-4000-8000-000000000001))\n",
    }
    return {
        "a": write_vault(work / "a", logseq),
        "b": write_vault(work / "b", {"Bread.md": "# Bread\n\nNeeds [[Flour]].\n", "Flour.md": "# Flour\n"}),
    }


def lake_of(work: Path, vaults: dict[str, Path], **settings: Any) -> Lakehouse:
    sources = [{"name": name, "path": str(path)} for name, path in vaults.items()]
    return Lakehouse.open(lake_settings(work / "lake", work, **{"sources": sources, **settings}))


def alive(lake: Lakehouse) -> dict[tuple[str, str], str]:
    rows = lake.tables.read("silver.processed_notes").read_all().to_pylist()
    return {(row["source"], row["path"]): row["note_id"] for row in rows if row["deleted_at"] is None}


def block_refs(lake: Lakehouse) -> list[str]:
    rows = lake.tables.read("silver.knowledge_graph").read_all().to_pylist()
    return [row["status"] for row in rows if "64a1b2c3" in row["raw_target"]]


def test_a_source_that_is_taken_out_of_the_settings_keeps_its_notes(work: Path, vaults: dict[str, Path]) -> None:
    with lake_of(work, vaults) as lake:
        lake.update()
        before = alive(lake)
    with lake_of(work, {"b": vaults["b"]}) as lake:
        write_vault(vaults["b"], {"Flour.md": "# Flour\n\nStone ground.\n"})
        lake.update()
        assert alive(lake) == before
        assert block_refs(lake) == ["resolved"]
        assert lake.flavour("a") == "logseq"
        assert lake.search("stone ground", k=1, mode="text")[0].path == "Flour.md"
        assert lake.is_current()
        (gone,) = [source for source in lake.status().sources if source.name == "a"]
        assert gone.notes == 2
        assert "not in the settings" in (gone.error or "")
    with lake_of(work, vaults) as lake:
        lake.update()
        assert alive(lake) == before


def test_a_source_that_is_renamed_is_a_new_one_beside_the_old(work: Path, vaults: dict[str, Path]) -> None:
    with lake_of(work, vaults) as lake:
        lake.update()
    with lake_of(work, {"a": vaults["a"], "c": vaults["b"]}) as lake:
        lake.update()
        assert {source for source, _ in alive(lake)} == {"a", "b", "c"}


def test_a_source_that_is_not_mounted_stops_no_other(work: Path, vaults: dict[str, Path]) -> None:
    with lake_of(work, vaults) as lake:
        lake.update()
        before = alive(lake)
        vaults["a"].rename(work / "a.gone")
        write_vault(vaults["b"], {"Flour.md": "# Flour\n\nStone ground.\n"})
        lake.update(sources=["b"])
        assert lake.search("stone ground", k=1, mode="text")[0].path == "Flour.md"
        write_vault(vaults["b"], {"Salt.md": "# Salt\n\nFrom the sea.\n"})
        with pytest.raises(SourceError, match=r"source a: .* Is a disk not mounted"):
            lake.update()
        assert lake.search("from the sea", k=1, mode="text")[0].path == "Salt.md"
        assert alive(lake).keys() == before.keys() | {("b", "Salt.md")}
        assert not lake.is_current()
        (work / "a.gone").rename(vaults["a"])
        lake.update()
        assert lake.is_current()


def test_an_empty_mount_point_does_not_change_how_notes_are_read(work: Path, vaults: dict[str, Path]) -> None:
    with lake_of(work, vaults) as lake:
        lake.update()
        vaults["a"].rename(work / "a.gone")
        vaults["a"].mkdir()
        with pytest.raises(SourceError, match="quite empty"):
            lake.update()
        assert lake.flavour("a") == "logseq"


def test_a_source_that_never_was_stops_no_other(work: Path, vaults: dict[str, Path]) -> None:
    nowhere = {"never": work / "never", "nor this": work / "nor this"}
    sources = {name.replace(" ", "-"): path for name, path in {**nowhere, **vaults}.items()}
    with lake_of(work, sources) as lake:
        assert not lake.is_current()
        with pytest.raises(SourceError, match=r"source never: .*; source nor-this: "):
            lake.update()
        assert len(alive(lake)) == 4
        lake.update(sources=["a", "b"])


def test_what_the_settings_say_of_the_flavour_counts(work: Path, vaults: dict[str, Path]) -> None:
    source = {"name": "a", "path": str(vaults["a"]), "flavour": "obsidian"}
    with lake_of(work, {}, sources=[source]) as lake:
        lake.update()
        assert lake.flavour("a") == "obsidian"
    with lake_of(work, {}, sources=[{**source, "flavour": "auto"}]) as lake:
        lake.update()
        assert lake.flavour("a") == "logseq"


def test_a_run_brings_up_to_date_what_it_can_and_then_fails(work: Path, vaults: dict[str, Path]) -> None:
    with code_location(work / "lake", [(name, "folder", path) for name, path in vaults.items()]) as location:
        lake, day = location.lake, dt.datetime.now(dt.UTC).date().isoformat()
        lake.update()
        vaults["a"].rename(work / "a.gone")
        write_vault(vaults["b"], {"Salt.md": "# Salt\n\nFrom the sea.\n"})
        result = location.run(partition_key=day)
        assert not result.success
        failures = [event for event in result.all_events if event.is_step_failure]
        assert [event.step_key for event in failures] == ["bronze__raw_notes_sources_read"]
        assert "source a: " in str(failures[0].step_failure_data.error)
        assert lake.search("from the sea", k=1, mode="text")[0].path == "Salt.md"
        assert list(lake.state.scan("unread:")) == []
