"""Runs whose process was killed are ended at the next look, wherever they were; those that live are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.storage.tags import GRPC_INFO_TAG

from pkm_pipelines.cli import runner
from pkm_pipelines.operations import jobs
from resources.dead_runs import free_dead_runs
from tests.support.dev import pkm
from tests.support.location import CodeLocation, code_location

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def location(work: Path) -> Iterator[CodeLocation]:
    (work / "vault").mkdir()
    (work / "vault" / "Bread.md").write_text("# Bread\n\nFlour and water.\n")
    with code_location(work / "lake", [("vault", "folder", work / "vault")]) as location:
        yield location


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def launched(location: CodeLocation, pid: int | None, status: dg.DagsterRunStatus, host: str = "localhost") -> str:
    """A run as Dagster's launcher leaves it whose process `pid` has begun."""
    job = location.defs.resolve_job_def("update")
    tags = {GRPC_INFO_TAG: f'{{"host": "{host}", "socket": "x"}}'}
    run = location.instance.create_run_for_job(job, tags=tags, status=status)
    if pid is not None:
        data = EngineEventData.in_process(pid)
        location.instance.report_engine_event(f"Started process for run (pid: {pid}).", run, data)
    return run.run_id


def status_of(location: CodeLocation, run_id: str) -> dg.DagsterRunStatus:
    run = location.instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def killed(location: CodeLocation, point: str) -> None:
    _, environment = pkm(location.lake.settings.home)
    process = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_run", "SIGKILL", point],
        cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == -9, process.stderr.decode()


@pytest.mark.parametrize("point", ["recorded", "started", "vault: notes"])
def test_a_killed_pkm_run_is_freed_by_the_next_tick(location: CodeLocation, work: Path, point: str) -> None:
    killed(location, point)
    (work / "vault" / "Flour.md").write_text("# Flour\n")
    with dg.DagsterInstance.from_config(str(location.lake.settings.data_dir / "dagster")) as instance:
        here = replace(location, instance=instance)
        [run] = instance.get_runs()
        assert run.status.value == ("NOT_STARTED" if point == "recorded" else "STARTED")
        assert len(here.sensor("changes_of_vault").run_requests) == 1, "the source has changed, and nothing is at work"
        assert status_of(here, run.run_id) is dg.DagsterRunStatus.FAILURE
        [job] = jobs.list_jobs(location.lake.state)
        assert (job.run_id, job.status, job.error) == (run.run_id, "failed", jobs.KILLED)


def test_the_next_pkm_run_frees_a_killed_one(location: CodeLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    killed(location, "recorded")
    report = runner.run(location.lake, progress=location.progress)
    with dg.DagsterInstance.from_config(str(location.lake.settings.data_dir / "dagster")) as instance:
        found = {run.run_id: run.status.value for run in instance.get_runs()}
    assert found.pop(report.run_id) == "SUCCESS"
    assert list(found.values()) == ["FAILURE"]
    assert sorted(job.status for job in jobs.list_jobs(location.lake.state)) == ["failed", "succeeded"]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_launched_run_that_has_not_worked_yet_is_freed(
    location: CodeLocation, status: dg.DagsterRunStatus, gone: int
) -> None:
    run_id = launched(location, gone, status)
    assert len(location.sensor("changes_of_vault").run_requests) == 1
    assert status_of(location, run_id) is dg.DagsterRunStatus.FAILURE


def test_a_launched_run_at_work_is_freed_at_once_and_its_cancelling_is_one(location: CodeLocation, gone: int) -> None:
    state = location.lake.state
    wanted = {}
    for before, after in ((dg.DagsterRunStatus.STARTED, "failed"), (dg.DagsterRunStatus.CANCELING, "cancelled")):
        run_id = launched(location, None, before)
        record = jobs.start_job(state, run_id, is_watched=True)
        jobs._write(state, replace(record, pid=gone))
        wanted[run_id] = after
    assert set(free_dead_runs(state, location.instance)) == set(wanted)
    assert {run_id: jobs.read_job(state, run_id).status for run_id in wanted} == wanted
    assert free_dead_runs(state, location.instance) == []


def test_what_lives_or_cannot_be_known_is_left_alone(location: CodeLocation, gone: int) -> None:
    started = dg.DagsterRunStatus.STARTED
    living = [
        launched(location, os.getpid(), started),
        launched(location, None, dg.DagsterRunStatus.STARTING),
        launched(location, gone, started, host="elsewhere"),
    ]
    state = location.lake.state
    jobs.start_job(state, living[0])
    abroad = launched(location, None, started)
    record = jobs.start_job(state, abroad)
    jobs._write(state, replace(record, host="elsewhere", pid=gone))
    assert free_dead_runs(state, location.instance) == []
    assert location.sensor("changes_of_vault").skip_message == "an update is under way"


def test_another_process_of_the_same_number_is_not_the_run(location: CodeLocation) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as late:
        run = location.instance.get_run_by_id(launched(location, None, dg.DagsterRunStatus.STARTED))
        assert run is not None
        event = dg.DagsterEvent(
            dg.DagsterEventType.ENGINE_EVENT.value,
            run.job_name,
            event_specific_data=EngineEventData.in_process(late.pid),
        )
        location.instance.report_dagster_event(event, run.run_id, timestamp=time.time() - 3600)
        assert free_dead_runs(location.lake.state, location.instance) == [run.run_id]
        late.communicate(b"\n")
