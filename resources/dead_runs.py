"""Runs whose process was killed: found by looking for the process, and ended in Dagster's record and in ours.

Dagster's monitoring cannot do it: its default launcher does not know how a run's process is. The code server that
started a run tells when that dies, but not if it was killed too; and of a `pkm run` nobody tells.
"""

import json
from typing import Literal

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

from pkm_pipelines.operations.jobs import CLOCK_SECONDS, KILLED, end_job, is_alive, process_started, read_job
from pkm_pipelines.storage.slate_client import State

# A queued run has no process yet.
_AT_WORK = dg.RunsFilter(
    statuses=[
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
)


def free_dead_runs(state: State, instance: dg.DagsterInstance) -> list[str]:
    """End the runs whose process was killed, in Dagster's record as in ours, and free the slots they hold.

    Returns their run ids. A run is left alone if its process lives, or ran on a host that cannot be seen from here.
    """
    freed: list[str] = []
    for run in instance.get_runs(_AT_WORK):
        record = read_job(state, run.run_id)
        known = is_alive(record) if record is not None and record.pid is not None else _is_launched_alive(instance, run)
        if known is not False:
            continue
        # Asked again now that its process is gone for certain: before that, it may have ended as it should.
        last = instance.get_run_by_id(run.run_id)
        if last is None or last.is_finished:
            continue
        is_cancelled = last.status is dg.DagsterRunStatus.CANCELING
        end_run(state, instance, run.run_id, "cancelled" if is_cancelled else "failed", KILLED)
        freed.append(run.run_id)
    return freed


def end_run(
    state: State, instance: dg.DagsterInstance, run_id: str, status: Literal["failed", "cancelled"], why: str
) -> None:
    """End a run that did not say itself how it ended, in Dagster's record (if it came to that) and in ours."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        report = instance.report_run_canceled if status == "cancelled" else instance.report_run_failed
        report(run, message=why)
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    end_job(state, run_id, status, why if status == "failed" else None)


def _is_launched_alive(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool | None:
    """The same for a run that has not come to its own record, from what Dagster wrote when its process began."""
    server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    if server.get("host") != "localhost":
        return None
    for entry in reversed(instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)):
        pid = entry.get_dagster_event().engine_event_data.metadata.get("pid")
        if pid is not None:
            started = process_started(int(str(pid.value)))
            return started is not None and started < entry.timestamp + CLOCK_SECONDS
    return None
