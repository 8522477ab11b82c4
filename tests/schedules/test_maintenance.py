"""The debt sensor and its job over a real lakehouse: asked for when a limit is passed, worked off, and quiet again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pkm_pipelines.operations.checks import NOTE_EMBEDDINGS, within_debt
from pkm_pipelines.operations.debt import debt_of
from tests.support.iceberg import STATE, thing, write
from tests.support.location import CodeLocation, code_location
from tests.support.odd_tables import lose_files

NOTES = "silver.processed_notes"


@pytest.fixture
def location(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CodeLocation]:
    monkeypatch.setenv("PKM_MAINTENANCE__SNAPSHOTS", "1")
    monkeypatch.setenv("PKM_MAINTENANCE__KEEP_SNAPSHOTS", "1")
    for keep in ("LAST", "HOURLY", "DAILY", "MONTHLY"):
        monkeypatch.setenv(f"PKM_KEEP_CUTS_{keep}", "1" if keep == "LAST" else "0")
    vault = work / "vault"
    vault.mkdir()
    with code_location(work / "lake", [("vault", "folder", vault)]) as location:
        yield location


def test_debt_is_noticed_worked_off_and_not_asked_for_again(location: CodeLocation, work: Path) -> None:
    assert location.sensor("debt").run_requests == []
    for turn in range(6):
        (work / "vault" / "Bread.md").write_text(f"# Bread\n\nTurn {turn}.\n")
        location.lake.update()
    before = debt_of(location.lake, NOTES)
    assert before.expirable > 2
    assert not within_debt(NOTES)(location.lake).passed
    [request] = location.sensor("debt").run_requests
    assert NOTES in request.run_config["ops"]["maintain_tables"]["config"]["tables"]
    [again] = location.sensor("debt").run_requests
    assert again.run_key == request.run_key
    rows = location.lake.tables.read(NOTES).read_all().sort_by("note_id")
    assert location.run("maintain", config=request.run_config).success
    assert debt_of(location.lake, NOTES).expirable <= 1
    assert within_debt(NOTES)(location.lake).passed
    assert location.lake.tables.read(NOTES).read_all().sort_by("note_id") == rows
    location.lake.update()
    assert location.lake.is_current()


def test_what_no_run_could_work_off_is_not_asked_for(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of vectors pile up, and all are too young to go."""
    monkeypatch.setenv("PKM_MAINTENANCE__VERSIONS", "1")
    (work / "vault").mkdir()
    with code_location(work / "lake", [("vault", "folder", work / "vault")]) as location:
        for turn in range(5):
            (work / "vault" / "Bread.md").write_text(f"# Bread\n\nTurn {turn}.\n")
            location.lake.update()
        vectors = str(location.lake.vector_table)
        assert debt_of(location.lake, vectors).versions >= 5
        assert location.sensor("debt").run_requests == []
        assert within_debt(NOTE_EMBEDDINGS)(location.lake).passed


def test_a_table_that_cannot_be_read_fails_the_run_once_the_others_are_done(location: CodeLocation, work: Path) -> None:
    lake = location.lake
    lake.tables.create(STATE)
    write(lake.tables, STATE, [thing("a")])
    lose_files(lake.iceberg, STATE.name)
    for turn in range(4):
        (work / "vault" / "Bread.md").write_text(f"# Bread\n\nTurn {turn}.\n")
        lake.update()
    [request] = location.sensor("debt").run_requests or []
    wanted = request.run_config["ops"]["maintain_tables"]["config"]["tables"]
    assert {STATE.name, NOTES} <= set(wanted)
    done = location.run("maintain", config=request.run_config)
    assert not done.success
    [error] = [event.step_failure_data.error for event in done.all_events if event.is_step_failure]
    assert f"1 could not be maintained: {STATE.name}: " in str(error)
    assert debt_of(lake, NOTES).expirable <= 1, "the others were done"
    keys: set[str | None] = set()
    for _ in range(3):
        [request] = location.sensor("debt").run_requests or []
        keys.add(request.run_key)
        assert not location.run("maintain", config=request.run_config).success
    assert len(keys) == 1, "it is told once, and not at each tick"


def test_one_operation_by_name_and_what_it_would_do(location: CodeLocation, work: Path) -> None:
    for turn in range(3):
        (work / "vault" / "Bread.md").write_text(f"# Bread\n\nTurn {turn}.\n")
        location.lake.update()
    before = debt_of(location.lake, NOTES)
    config = {"tables": [NOTES], "operations": ["expire", "vectors"], "dry_run": True}
    dry = location.run("maintain", config={"ops": {"maintain_tables": {"config": config}}})
    assert dry.success
    assert debt_of(location.lake, NOTES) == before
    config["dry_run"] = False
    assert location.run("maintain", config={"ops": {"maintain_tables": {"config": config}}}).success
    assert debt_of(location.lake, NOTES).snapshots < before.snapshots
    config["operations"] = ["polish"]
    assert not location.run("maintain", config={"ops": {"maintain_tables": {"config": config}}}).success


def test_nothing_is_asked_for_while_maintenance_runs(location: CodeLocation) -> None:
    job = location.defs.resolve_job_def("maintain")
    location.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert location.sensor("debt").skip_message == "maintenance is under way"
