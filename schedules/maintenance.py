"""Maintenance by debt: a sensor looks at what tables have piled up, and asks for a run where it would pay."""

import hashlib
from collections.abc import Iterable

import dagster as dg
from pydantic import Field

from pkm_pipelines import settings
from pkm_pipelines.model.errors import CancelledError, PkmError, TableNotFoundError
from pkm_pipelines.operations.debt import debt_of, debtors, due, fingerprint, maintain_due, reason
from pkm_pipelines.operations.maintenance import OPERATIONS, Report, tables_of
from pkm_pipelines.operations.maintenance import maintain as run_operation
from pkm_pipelines.operations.stores import Stores
from resources.lakehouse import LakehouseResource

_SETTINGS = settings.load()


class MaintainConfig(dg.Config):
    """What to do, and to which tables."""

    tables: list[str] = Field(default_factory=list, description="Only these tables; all by default.")
    operations: list[str] = Field(
        default_factory=list, description=f"Of {', '.join(OPERATIONS)}; by default what is due."
    )
    dry_run: bool = Field(default=False, description="Say what would be done, and change nothing.")


@dg.op(pool="maintenance", description="Does what is due for each table: compaction, expiry, orphans and the rest.")
def maintain_tables(context: dg.OpExecutionContext, config: MaintainConfig, lakehouse: LakehouseResource) -> None:
    """Work off the debt of some tables, one after the other; fails at the end if that failed for any of them."""
    saved_files = saved_bytes = 0
    failed: list[str] = []
    for table in config.tables or debtors(lakehouse.lake):
        try:
            reports = _maintain_one(lakehouse.lake, table, config, context.run_id)
        except CancelledError:
            raise
        except Exception as error:  # told, whatever it is
            failed.append(f"{table}: {reason(error)}")
            context.log.error(failed[-1], exc_info=not isinstance(error, PkmError))
            continue
        for report in reports:
            for work in report.done:
                context.log.info(f"{report.operation} {work.table}: {work.what}")
                saved_files, saved_bytes = saved_files + work.saves_files, saved_bytes + work.saves_bytes
    context.add_output_metadata({"files less": saved_files, "bytes less": saved_bytes, "dry run": config.dry_run})
    if failed:
        raise dg.Failure(f"{len(failed)} could not be maintained: {'; '.join(failed)}", allow_retries=False)


def _maintain_one(stores: Stores, table: str, config: MaintainConfig, run_id: str) -> Iterable[Report]:
    if not config.operations and not config.dry_run:
        return maintain_due(stores, table, run_id=run_id)
    wanted = config.operations or due(stores, debt_of(stores, table))
    return [
        run_operation(stores, name, table, dry_run=config.dry_run, run_id=run_id)
        for name in wanted
        if table in tables_of(stores, name)
    ]


@dg.job(description="Work off what tables, vectors and the state have piled up. Safe beside every other run.")
def maintain() -> None:
    """Do what is due."""
    maintain_tables()


@dg.sensor(
    job=maintain,
    minimum_interval_seconds=max(60, _SETTINGS.sensor_seconds),
    default_status=dg.DefaultSensorStatus.RUNNING if _SETTINGS.maintenance.auto else dg.DefaultSensorStatus.STOPPED,
    description="Asks for maintenance of the tables whose debt has passed a limit of [maintenance].",
)
def debt(context: dg.SensorEvaluationContext, lakehouse: LakehouseResource) -> dg.RunRequest | dg.SkipReason:
    """Ask for one run of what is due; debt that a run could not work off asks for no other until it changes.

    A table that cannot be read is part of the run, which fails after having done the others, and so is seen.
    """
    unfinished = [status for status in dg.DagsterRunStatus if status.value in ("QUEUED", "NOT_STARTED", "STARTED")]
    if context.instance.get_runs(dg.RunsFilter(job_name=maintain.name, statuses=unfinished), limit=1):
        return dg.SkipReason("maintenance is under way")
    wanted: dict[str, str] = {}
    for table in debtors(lakehouse.lake):
        try:
            why = fingerprint(lakehouse.lake, debt_of(lakehouse.lake, table))
        except TableNotFoundError:  # dropped meanwhile
            continue
        except Exception as error:  # noqa: BLE001 # told, whatever it is
            context.log.error(f"{table}: {reason(error)}")
            why = f"cannot be read: {type(error).__name__}"  # not the whole text: a store's may be new each time
        if why:
            wanted[table] = why
    if not wanted:
        return dg.SkipReason("no table is over a limit")
    key = hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()[:32]
    config = dg.RunConfig(ops={"maintain_tables": MaintainConfig(tables=sorted(wanted))})
    return dg.RunRequest(run_key=f"maintain-{key}", run_config=config)
