"""The record of a run in state."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pkm_pipelines.operations import jobs
from tests.support.lake import open_lake


def test_a_run_from_queue_to_end(work: Path) -> None:
    with open_lake(work / "lake", work) as lake:
        jobs.queue_job(lake.state, "r1")
        assert [job.status for job in jobs.list_jobs(lake.state)] == ["queued"]
        progress = jobs.JobProgress(lake.state, "r1")
        progress.stage("parse", total=3)
        progress.advance(2)
        progress.done()
        [job] = jobs.list_jobs(lake.state)
        assert (job.status, job.stage, job.counts, job.total) == ("running", "parse", {"parse": 2}, 3)
        jobs.end_job(lake.state, "r1", "failed", "the disk is full")
        [job] = jobs.list_jobs(lake.state)
        assert (job.status, job.error, job.counts) == ("failed", "the disk is full", {"parse": 2})
        assert job.queued_at and job.started_at and job.ended_at
        jobs.queue_job(lake.state, "r1")  # the sensor that saw it waiting may come late
        assert jobs.read_job(lake.state, "r1") == job


def test_counts_of_a_second_step_are_added(work: Path) -> None:
    with open_lake(work / "lake", work) as lake:
        for stage in ("parse", "embed"):
            progress = jobs.JobProgress(lake.state, "r1")
            progress.stage(stage)
            progress.advance(5)
            progress.done()
        job = jobs.read_job(lake.state, "r1")
        assert job is not None and job.counts == {"parse": 5, "embed": 5}


def test_a_dead_process_is_a_failed_run(work: Path) -> None:
    with open_lake(work / "lake", work) as lake:
        jobs.start_job(lake.state, "alive")
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        job = jobs.start_job(lake.state, "dead")
        jobs._write(lake.state, replace(job, pid=dead.pid))
        found = {job.run_id: job for job in jobs.list_jobs(lake.state)}
        assert found["alive"].status == "running"
        assert found["dead"].status == "failed"
        assert "killed" in (found["dead"].error or "")


def test_how_a_watched_run_ended_is_told_by_the_daemon(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_lake(work / "lake", work) as lake:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        job = jobs.start_job(lake.state, "r1", is_watched=True)
        jobs._write(lake.state, replace(job, pid=dead.pid))
        for _ in range(2):
            [found] = jobs.list_jobs(lake.state)
            assert found.status == "running", "its process has ended, and the daemon has not said how"
            assert found.gone_at is not None
        monkeypatch.setattr(jobs, "DAEMON_SECONDS", 0)
        [found] = jobs.list_jobs(lake.state)
        assert found.status == "failed", "nobody has said anything for long"
        jobs.end_job(lake.state, "r1", "succeeded")
        assert jobs.list_jobs(lake.state)[0].status == "succeeded"


def test_ended_runs_are_bounded(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_lake(work / "lake", work) as lake:
        monkeypatch.setattr(jobs, "KEPT_JOBS", 3)
        jobs.start_job(lake.state, "running")
        for number in range(6):
            jobs.end_job(lake.state, f"r{number}", "succeeded")
        assert {job.run_id for job in jobs.list_jobs(lake.state)} == {"running", "r3", "r4", "r5"}
