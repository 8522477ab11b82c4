"""Maintenance by debt: a sensor looks at what tables have piled up, and asks for a run where it would pay."""

import hashlib

import dagster as dg
from pydantic import Field

from pkm_pipelines import settings
from pkm_pipelines.model.errors import TableNotFoundError
from pkm_pipelines.operations.debt import debt_of, due, maintain_due
from pkm_pipelines.operations.maintenance import STATE_TABLE, last_report, tables_of
from pkm_pipelines.operations.stores import Stores
from resources.lakehouse import LakehouseResource

_SETTINGS = settings.load()


class MaintainConfig(dg.Config):
    """Which tables."""

    tables: list[str] = Field(default_factory=list, description="Only these tables; all by default.")


def _everything(stores: Stores) -> list[str]:
    return [*tables_of(stores, "compact"), *tables_of(stores, "vectors"), STATE_TABLE]


@dg.op(pool="maintenance", description="Does what is due for each table: compaction, expiry, orphans and the rest.")
def maintain_tables(context: dg.OpExecutionContext, config: MaintainConfig, lakehouse: LakehouseResource) -> None:
    """Work off the debt of some tables, one after the other."""
    for table in config.tables or _everything(lakehouse.lake):
        for report in maintain_due(lakehouse.lake, table, run_id=context.run_id):
            for work in report.done:
                context.log.info(f"{report.operation} {work.table}: {work.what}")


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
    """Ask for one run of what is due; the same debt, after it was worked on, asks for no second one."""
    unfinished = [status for status in dg.DagsterRunStatus if status.value in ("QUEUED", "NOT_STARTED", "STARTED")]
    if context.instance.get_runs(dg.RunsFilter(job_name=maintain.name, statuses=unfinished), limit=1):
        return dg.SkipReason("maintenance is under way")
    wanted: dict[str, str] = {}
    for table in _everything(lakehouse.lake):
        try:
            found = debt_of(lakehouse.lake, table)
        except TableNotFoundError:  # dropped meanwhile
            continue
        if operations := due(lakehouse.lake, found):
            wanted[table] = f"{found} {operations} {[last_report(lakehouse.lake, name, table) for name in operations]}"
    if not wanted:
        return dg.SkipReason("no table is over a limit")
    key = hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()[:32]
    config = dg.RunConfig(ops={"maintain_tables": MaintainConfig(tables=sorted(wanted))})
    return dg.RunRequest(run_key=f"maintain-{key}", run_config=config)
