"""Sensors and the schedule, one tick at a time, over a real lakehouse."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pkm_pipelines.model.progress import NullProgress
from pkm_pipelines.operations.ingest import ingest
from pkm_pipelines.operations.jobs import end_job, list_jobs, read_job
from pkm_pipelines.operations.refine import refine_notes
from pkm_pipelines.operations.vectorise import embed_notes
from pkm_pipelines.operations.write import write_all
from resources.lakehouse import LakehouseResource
from tests.support.location import CodeLocation, code_location
from tests.support.vaults import History


@pytest.fixture
def vault(work: Path) -> Path:
    folder = work / "vault"
    folder.mkdir()
    (folder / "Bread.md").write_text("# Bread\n\nFlour and water. #food\n")
    return folder


@pytest.fixture
def location(work: Path, vault: Path) -> Iterator[CodeLocation]:
    history = History(work / "history.git")
    history.commit({"Loaf.md": "# Loaf\n\nSee [[Bread]].\n"})
    sources = [("folder-1", "folder", vault), ("history", "git", work / "history.git")]
    with code_location(work / "lake", sources) as location:
        yield location


def make_run(location: CodeLocation, job: str, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    return location.instance.create_run_for_job(location.defs.resolve_job_def(job), status=status)


def today() -> str:
    return dt.datetime.now(dt.UTC).date().isoformat()


def test_a_changed_folder_asks_for_one_run(location: CodeLocation, vault: Path) -> None:
    [request] = location.sensor("changes_of_folder_1").run_requests
    assert request.partition_key == today()
    assert request.run_config["ops"]["bronze__raw_notes"]["config"]["sources"] == ["folder-1"]
    assert request.run_config["ops"]["bronze__raw_media"]["config"]["follow"] is True
    [again] = location.sensor("changes_of_folder_1").run_requests
    assert again.run_key == request.run_key, "Dagster makes one run of one key"
    assert location.run(config=request.run_config, partition_key=request.partition_key).success
    skipped = location.sensor("changes_of_folder_1")
    assert (skipped.run_requests, skipped.skip_message) == ([], "nothing changed")
    (vault / "Bread.md").write_text("# Bread\n\nFlour, water and salt. #food\n")
    [later] = location.sensor("changes_of_folder_1").run_requests
    assert later.run_key != request.run_key


def test_a_new_commit_asks_for_a_run(location: CodeLocation, work: Path) -> None:
    location.lake.update()
    assert location.sensor("changes_of_history").run_requests == []
    History(work / "history.git").commit({"Loaf.md": "# Loaf\n\nBaked.\n"}, at=dt.datetime(2024, 5, 1, tzinfo=dt.UTC))
    [request] = location.sensor("changes_of_history").run_requests
    assert request.tags["pkm/source"] == "history"
    assert location.sensor("changes_of_folder_1").run_requests == []


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_no_run_is_asked_for_while_one_is_under_way(location: CodeLocation, status: dg.DagsterRunStatus) -> None:
    make_run(location, "update", status)
    assert location.sensor("changes_of_folder_1").skip_message == "an update is under way"
    assert location.sensor("vectors_behind").skip_message == "a run that embeds is under way"


def test_vectors_that_lag_are_embedded(location: CodeLocation) -> None:
    assert location.sensor("vectors_behind").skip_message == "the vectors are up to date"
    lake, progress = location.lake, NullProgress()
    write_all(lake, "bronze.raw_notes", ingest(lake, "notes", progress=progress))
    write_all(lake, "silver.processed_notes", refine_notes(lake, progress=progress))
    [request] = location.sensor("vectors_behind").run_requests
    assert request.run_key.startswith(f"{lake.vector_table}-code-")
    assert request.run_key.endswith(f"-silver-{lake.iceberg.snapshot_id('silver.processed_notes')}")
    write_all(lake, "vectors.note_embeddings", embed_notes(lake, progress=progress))
    assert location.sensor("vectors_behind").skip_message == "the vectors are up to date"


def record_failure(location: CodeLocation, run: dg.DagsterRun, event: dg.DagsterEvent) -> None:
    context = dg.build_run_status_sensor_context("record_failure", event, location.instance, run)
    location.module("schedules.sensors").record_failure(context.for_run_failure(), lakehouse=LakehouseResource())


def test_a_failure_is_recorded_with_its_cause(location: CodeLocation, vault: Path) -> None:
    location.lake.update()
    vault.rename(vault.with_name("unmounted"))
    result = location.run(partition_key=today())
    assert not result.success
    record_failure(location, result.dagster_run, result.get_run_failure_event())
    job = read_job(location.lake.state, result.run_id)
    assert job is not None
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.startswith("bronze.raw_notes_sources_read: source ")
    assert str(vault) in job.error


def test_a_killed_run_is_recorded_with_what_was_seen(location: CodeLocation) -> None:
    run = make_run(location, "update", dg.DagsterRunStatus.STARTED)
    location.instance.report_engine_event(
        "[DagsterApiServer] Run execution process for x was terminated by signal 9 (SIGKILL). Perhaps memory.", run
    )
    event = location.instance.report_run_failed(run)
    record_failure(location, run, event)
    job = read_job(location.lake.state, run.run_id)
    assert job is not None
    assert (job.status, job.error) == ("failed", "Run execution process for x was terminated by signal 9 (SIGKILL)")


def test_a_run_that_monitoring_ends_says_why(location: CodeLocation) -> None:
    run = make_run(location, "update", dg.DagsterRunStatus.STARTED)
    record_failure(location, run, location.instance.report_run_failed(run, "Run timed out"))
    job = read_job(location.lake.state, run.run_id)
    assert job is not None
    assert job.error == "Run timed out"


def test_queued_cancelled_and_finished_runs_are_recorded(location: CodeLocation) -> None:
    state, sensors = location.lake.state, location.module("schedules.sensors")

    def tell(name: str, run: dg.DagsterRun) -> str | None:
        event = dg.DagsterEvent(dg.DagsterEventType.PIPELINE_SUCCESS.value, run.job_name)
        context = dg.build_run_status_sensor_context(name, event, location.instance, run)
        getattr(sensors, name)(context, lakehouse=LakehouseResource())
        job = read_job(state, run.run_id)
        return job.status if job else None

    run = make_run(location, "update", dg.DagsterRunStatus.NOT_STARTED)
    assert tell("record_queued", run) == "queued"
    assert tell("record_cancel", run) == "cancelled"
    assert tell("record_queued", run) == "cancelled", "a sensor may be late"
    result = location.run(partition_key=today())
    assert tell("record_success", result.dagster_run) == "succeeded"
    end_job(state, result.run_id, "failed", "x")
    assert tell("record_success", result.dagster_run) == "succeeded", "who only missed its process was wrong"
    assert {job.run_id for job in list_jobs(state)} == {run.run_id, result.run_id}


def test_the_daily_schedule_asks_for_the_day_it_is(location: CodeLocation) -> None:
    schedule = location.defs.get_repository_def().get_schedule_def("daily")
    for moment in (dt.datetime(2024, 5, 6, 3, tzinfo=dt.UTC), dt.datetime.now(dt.UTC)):
        context = dg.build_schedule_context(
            location.instance, moment, repository_def=location.defs.get_repository_def()
        )
        [request] = schedule.evaluate_tick(context).run_requests
        day = moment.date().isoformat()
        assert (request.partition_key, request.run_key) == (day, f"daily-{day}")
        assert request.run_config["ops"]["bronze__raw_notes"]["config"]["follow"] is True
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_sensors_run_by_themselves_and_not_too_often(location: CodeLocation) -> None:
    sensors = {sensor.name: sensor for sensor in location.module("schedules.sensors").ALL}
    assert set(sensors) == {
        "changes_of_folder_1", "changes_of_history", "vectors_behind", "record_queued", "record_success",
        "record_failure", "record_cancel",
    }  # fmt: skip
    for name, sensor in sensors.items():
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING, name
        assert not name.startswith(("changes", "vectors")) or sensor.minimum_interval_seconds >= 30, name


def test_sources_that_differ_in_a_dash_have_a_sensor_each(work: Path) -> None:
    sources = []
    for name in ("a-b", "a_b", "c_d"):
        (work / name).mkdir()
        (work / name / "Bread.md").write_text(f"# Bread of {name}\n")
        sources.append((name, "folder", work / name))
    with code_location(work / "lake", sources) as location:
        for sensor, source in (("a_b", "a-b"), ("aUb", "a_b"), ("c_d", "c_d")):
            [request] = location.sensor(f"changes_of_{sensor}").run_requests
            assert request.tags["pkm/source"] == source
