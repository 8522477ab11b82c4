"""Runs in this process: the `update` job of Dagster, with a progress bar and without a daemon.

The run is recorded in the same instance that the UI shows, so a run from the command line has its page, its
logs and its materialisations there. Where nothing has changed, nothing is started: Dagster is not even imported.
"""

from __future__ import annotations

import datetime as dt
import gc
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pkm_pipelines.cli.instance import prepare_instance
from pkm_pipelines.knowledge import language
from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.errors import CancelledError, PkmError
from pkm_pipelines.model.progress import Progress
from pkm_pipelines.operations.jobs import end_job, start_job

if TYPE_CHECKING:
    import dagster as dg
    from dagster_shared.error import SerializableErrorInfo

    from pkm_pipelines.operations.ingest import Days

_RANGE_START, _RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
_MANY_DAYS = 100
_INTERRUPTED = "interrupted; what was committed is kept, and the next run goes on from there"


@dataclass(frozen=True)
class TableReport:
    """What a run did to one table."""

    table: str
    row_count: int
    rows_added: int
    rows_updated: int
    rows_deleted: int
    snapshot_id: str
    seconds: float


@dataclass
class RunReport:
    """What a run did. `run_id` is empty where there was nothing to do."""

    run_id: str = ""
    seconds: float = 0.0
    tables: list[TableReport] = field(default_factory=list)
    failed_checks: list[str] = field(default_factory=list)
    maintained: list[str] = field(default_factory=list)
    maintenance_failed: list[str] = field(default_factory=list)

    @property
    def nothing_to_do(self) -> bool:
        """Whether no run was needed."""
        return not self.run_id


def run(
    lake: Lakehouse,
    *,
    sources: Sequence[str] = (),
    days: Days | None = None,
    accept_deletes: bool = False,
    progress: Progress,
) -> RunReport:
    """Bring the lakehouse up to date, or backfill a range of days, none of them in the future.

    Afterwards what is due by debt is maintained, unless `maintenance.auto` is false.

    Raises `PkmError` with the cause of the step that failed. What was committed before is kept.
    """
    started = time.monotonic()
    settings = [lake.settings.source(name) for name in sources] or lake.settings.sources
    today = dt.datetime.now(dt.UTC).date()
    if days is not None and all(source.kind == "folder" for source in settings):
        # Dagster would record each of the days, which is all that a run of a year of them would do.
        progress.note(f"the past of a folder cannot be observed again; nothing to do for {days.first}…{days.last}")
        if days.last < today:
            return RunReport(seconds=time.monotonic() - started)
        days = None
    if days is not None and (number := (days.last - days.first).days + 1) > _MANY_DAYS:
        progress.note(f"{number} days; Dagster records each of them, some twenty a second")
    if days is None and lake.is_current():
        return RunReport(seconds=time.monotonic() - started)
    report = _execute(lake, _request(sources, days, today, accept_deletes), progress)
    if lake.settings.maintenance.auto:
        _maintain(lake, report, progress)
    report.seconds = time.monotonic() - started
    return report


def _maintain(lake: Lakehouse, report: RunReport, progress: Progress) -> None:
    """Do what is due after a run; what goes wrong with it is told, and fails no run."""
    from pkm_pipelines.operations.debt import debtors, maintain_due, reason

    for table in debtors(lake):
        try:
            done = maintain_due(lake, table, progress=progress, run_id=report.run_id)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 # told, whatever it is
            report.maintenance_failed.append(f"{table}: {reason(error)}")
        else:
            report.maintained += [f"{one.operation} {work.table}: {work.what}" for one in done for work in one.done]


def _request(sources: Sequence[str], days: Days | None, today: dt.date, accept_deletes: bool) -> dict[str, Any]:
    """The arguments of the job's run: which partitions, and with what configuration."""
    ingest = {"config": {"sources": list(sources), "accept_deletes": accept_deletes, "follow": days is None}}
    # What the console would show of a failure, the run's page shows better; here one line says it.
    quiet = {"console": {"config": {"log_level": "CRITICAL"}}}
    config = {"loggers": quiet, "ops": {"bronze__raw_notes": ingest, "bronze__raw_media": ingest}}
    if days is None:
        return {"run_config": config, "partition_key": today.isoformat()}
    return {"run_config": config, "tags": {_RANGE_START: days.first.isoformat(), _RANGE_END: days.last.isoformat()}}


def _execute(lake: Lakehouse, request: dict[str, Any], progress: Progress) -> RunReport:
    language.preload()
    prepare_instance(lake.settings)
    # Importing and planning make millions of objects that stay; collecting among them is a tenth of a short run.
    gc.set_threshold(100_000, 50, 50)
    import dagster as dg

    from pkm_pipelines.definitions import defs
    from pkm_pipelines.operations.cuts import take_cut
    from resources.dead_runs import end_run, free_dead_runs
    from resources.lakehouse import attached

    with dg.DagsterInstance.get() as instance, attached(lake, progress):
        free_dead_runs(lake.state, instance)
        run_id = str(uuid.uuid4())
        # Before Dagster knows of the run: if this process is killed from here on, the record says whose it was.
        start_job(lake.state, run_id)
        try:
            result = defs.resolve_job_def("update").execute_in_process(
                instance=instance, run_id=run_id, raise_on_error=False, **request
            )
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
            end_run(lake.state, instance, run_id, "cancelled", _INTERRUPTED)
            raise CancelledError(_INTERRUPTED) from error
        except BaseException as error:
            end_run(lake.state, instance, run_id, "failed", str(error))
            raise
        if not result.success:
            if _is_interrupted(result):
                end_job(lake.state, run_id, "cancelled")
                raise CancelledError(_INTERRUPTED)
            cause = _cause(result)
            end_job(lake.state, run_id, "failed", cause)
            raise PkmError(f"run {run_id[:8]}: {cause}")
        end_job(lake.state, run_id, "succeeded")
        take_cut(lake, run_id)
    return RunReport(run_id, tables=_tables(result), failed_checks=_failed_checks(result))


def _is_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether somebody pressed Ctrl-C, and a step or Dagster itself stopped for it."""
    names = (CancelledError.__name__, KeyboardInterrupt.__name__, "DagsterExecutionInterruptedError")
    return any(error.cls_name in names for _, error in _errors(result))


def _cause(result: dg.ExecuteInProcessResult) -> str:
    """The innermost message of each step that failed, and of each blocking check, else of the run."""
    from resources.causes import message, one_line

    failed = list(_errors(result))
    steps = one_line((step, message(error)) for step, error in failed if step)
    return (
        steps
        or "; ".join(_failed_checks(result) or [message(error) for _, error in failed])
        or "failed without a message"
    )


def _errors(result: dg.ExecuteInProcessResult) -> Iterator[tuple[str | None, SerializableErrorInfo]]:
    """The innermost error of each step that failed, and of the run (with no step)."""
    from resources.causes import innermost

    for event in result.all_events:
        if event.is_step_failure and (error := innermost(event.step_failure_data.error)) is not None:
            yield event.step_key, error
        elif event.is_run_failure and (error := innermost(event.job_failure_data.error)) is not None:
            yield None, error


def _failed_checks(result: dg.ExecuteInProcessResult) -> list[str]:
    return [
        f"{check.asset_key.to_user_string()} {check.check_name}: {check.description or 'failed'}"
        for check in result.get_asset_check_evaluations()
        if not check.passed
    ]


def _tables(result: dg.ExecuteInProcessResult) -> list[TableReport]:
    """What was done to each table. Of a range of days there is an event for each day, and all of them tell the same."""
    found: dict[str, TableReport] = {}
    for event in result.get_asset_materialization_events():
        materialization = event.step_materialization_data.materialization
        values: dict[str, Any] = {key: item.value for key, item in materialization.metadata.items()}
        if "dagster/row_count" not in values:
            continue  # a table that does not exist, as the vectors without an embedder
        table = str(values["dagster/table_name"])
        found[table] = TableReport(
            table=table,
            row_count=int(values["dagster/row_count"]),
            rows_added=int(values["rows_added"]),
            rows_updated=int(values["rows_updated"]),
            rows_deleted=int(values["rows_deleted"]),
            snapshot_id=str(values.get("iceberg/snapshot_id") or values.get("lance/version") or ""),
            seconds=float(values["run_duration_seconds"]),
        )
    return list(found.values())
