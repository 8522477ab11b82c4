"""The record of a run in state: queued, running, its stage and counts, how it ended.

Dagster keeps its own record of a run; this one is small, lies beside the data, and is what `pkm status` reads,
also for runs that Dagster never saw. A run whose process is gone without a word is marked failed by the
next reader: at once if the process would have had the last word, after a while if Dagster's daemon has it, whose
sensor tells how a run ended some seconds after its process did.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import psutil

from pkm_pipelines.model import keys
from pkm_pipelines.model.progress import NullProgress, Progress
from pkm_pipelines.storage.slate_client import State

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: tuple[JobStatus, ...] = ("succeeded", "failed", "cancelled")
KEPT_JOBS = 200
# How long the daemon may take to say how a run ended: some ticks of its sensors.
DAEMON_SECONDS = 150
KILLED = "the process ended without a word (killed?)"
CLOCK_SECONDS = 2
_WRITE_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """One run. Times are ISO 8601 in UTC; `counts` are by stage, for example `{"parse": 749}`.

    `is_watched` says that Dagster's daemon will tell how it ended, and `gone_at` when its process was missed first.
    """

    run_id: str
    status: JobStatus
    stage: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    total: int | None = None
    error: str | None = None
    queued_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    host: str | None = None
    pid: int | None = None
    process_started: float | None = None
    is_watched: bool = False
    gone_at: str | None = None


def read_job(state: State, run_id: str) -> Job | None:
    """The record of a run, or None."""
    value = state.get(keys.job(run_id))
    return None if value is None else _parse(value)


def list_jobs(state: State) -> list[Job]:
    """Every kept run, newest first; those whose process died are marked failed first."""
    jobs = [_parse(value) for _, value in state.scan(keys.JOB)]
    jobs = [_buried(state, job) for job in jobs]
    return sorted(jobs, key=lambda job: job.started_at or job.queued_at or "", reverse=True)


def _buried(state: State, job: Job) -> Job:
    if job.status != "running" or is_alive(job) is not False:
        return job
    if not job.is_watched or (job.gone_at and _seconds_since(job.gone_at) > DAEMON_SECONDS):
        changed = replace(job, status="failed", error=KILLED, ended_at=_now())
    elif job.gone_at is None:
        changed = replace(job, gone_at=_now())
    else:
        return job
    # Compare-and-set: the run may just have ended by itself.
    return (
        changed if state.cas(keys.job(job.run_id), _dump(job), _dump(changed)) else read_job(state, job.run_id) or job
    )


def is_alive(job: Job) -> bool | None:
    """Whether the process that worked on the run last is there; None if that cannot be seen from here."""
    if job.pid is None or job.host != socket.gethostname():
        return None
    started = process_started(job.pid)
    return started is not None and abs(started - (job.process_started or 0)) < CLOCK_SECONDS


def process_started(pid: int) -> float | None:
    """When the process `pid` of this host began, or None if there is none; one that was killed and not reaped is none.

    In a container nobody may reap it. Moments taken from it and from a clock differ by up to `CLOCK_SECONDS`.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def queue_job(state: State, run_id: str) -> None:
    """Record a run that waits for its turn."""
    if read_job(state, run_id) is None:
        _write(state, Job(run_id, "queued", queued_at=_now()))


def start_job(state: State, run_id: str, *, is_watched: bool = False) -> Job:
    """Record that this process works on the run; `is_watched` says that a daemon will tell how it ended."""
    before = read_job(state, run_id)
    job = Job(
        run_id,
        "running",
        queued_at=before.queued_at if before else None,
        started_at=(before.started_at if before else None) or _now(),
        counts=before.counts if before else {},
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
        is_watched=is_watched,
    )
    # Each step of a run in one process begins like this: what is known need not be made durable again.
    if before is None or replace(before, stage=job.stage, total=job.total) != job:
        _write(state, job)
    return job


def end_job(state: State, run_id: str, status: JobStatus, error: str | None = None) -> None:
    """Record how a run ended, and forget the oldest ended runs beyond `KEPT_JOBS`."""
    job = read_job(state, run_id) or Job(run_id, status)
    _write(state, replace(job, status=status, error=error, ended_at=_now()))
    ended = sorted(
        (job for job in (_parse(value) for _, value in state.scan(keys.JOB)) if job.status in ENDED),
        key=lambda job: job.ended_at or "",
    )
    for old in ended[:-KEPT_JOBS]:
        state.delete(keys.job(old.run_id))


class JobProgress:
    """Passes progress on to another listener, and to the run's record a few times a second."""

    def __init__(self, state: State, run_id: str, inner: Progress | None = None, *, is_watched: bool = False) -> None:
        self._state = state
        self._job = start_job(state, run_id, is_watched=is_watched)
        self._inner = inner or NullProgress()
        self._written = time.monotonic()

    def stage(self, name: str, total: int | None = None, unit: str = "notes") -> None:
        """Begin a stage and record it."""
        self._inner.stage(name, total, unit)
        changed = name != self._job.stage
        self._job = replace(self._job, stage=name, total=total)
        if changed:
            self._job.counts.setdefault(name, 0)
            self._record()

    def advance(self, n: int = 1, **counts: int) -> None:
        """Count, and record the count when the last record is old enough."""
        self._inner.advance(n, **counts)
        stage = self._job.stage
        self._job.counts[stage] = self._job.counts.get(stage, 0) + n
        if time.monotonic() - self._written > _WRITE_SECONDS:
            self._record()

    def done(self) -> None:
        """Record the last count of the stage."""
        self._inner.done()
        self._record()

    def note(self, message: str) -> None:
        """Pass a note on."""
        self._inner.note(message)

    def check_cancelled(self) -> None:
        """Pass the question on."""
        self._inner.check_cancelled()

    def _record(self) -> None:
        _write(self._state, self._job)
        self._written = time.monotonic()


def _seconds_since(moment: str) -> float:
    return (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(moment)).total_seconds()


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def _dump(job: Job) -> bytes:
    return json.dumps(asdict(job), ensure_ascii=False).encode()


def _write(state: State, job: Job) -> None:
    state.put(keys.job(job.run_id), _dump(job))


def _parse(value: bytes) -> Job:
    record: dict[str, Any] = json.loads(value)
    known = Job.__dataclass_fields__
    return Job(**{key: item for key, item in record.items() if key in known})
