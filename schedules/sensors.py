"""Sensors: a source that changed, vectors that lag behind, and runs whose end is to be recorded."""

import dagster as dg

from assets.bronze import follow_config
from assets.declare import DAYS
from pkm_pipelines import settings
from pkm_pipelines.model.tables import note_embeddings
from pkm_pipelines.operations import jobs as records
from pkm_pipelines.operations.cuts import take_cut
from pkm_pipelines.operations.lag import source_fingerprint, vectors_lag
from resources.causes import message, one_line
from resources.dead_runs import free_dead_runs
from resources.lakehouse import LakehouseResource
from schedules.jobs import embed, update

_SETTINGS = settings.load()
_UNFINISHED = dg.RunsFilter(
    statuses=[
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
    ]
)

_MOMENT_SECONDS = 2


def _is_busy(context: dg.SensorEvaluationContext, lakehouse: LakehouseResource, *jobs: str) -> bool:
    """Whether a run of `jobs` is under way: it will see what changed, so a second one would wait for nothing.

    One that was killed with its code server sees nothing more, and holds up those that queue behind it.
    """

    def is_busy() -> bool:
        return any(run.job_name in jobs for run in context.instance.get_runs(_UNFINISHED, limit=50))

    return is_busy() and (not free_dead_runs(lakehouse.lake.state, context.instance) or is_busy())


def _sensor_name(source: settings.SourceSettings) -> str:
    """Dagster's names have no '-'; where two sources differ in that alone, the one with '_' says so."""
    plain = source.name.replace("-", "_")
    twins = [other.name for other in _SETTINGS.sources if other.name.replace("-", "_") == plain]
    # No source has a capital in its name: what is made here is no other's.
    return f"changes_of_{plain if len(twins) == 1 else source.name.replace('_', 'U').replace('-', '_')}"


def _change_sensor(source: settings.SourceSettings) -> dg.SensorDefinition:
    @dg.sensor(
        name=_sensor_name(source),
        job=update,
        minimum_interval_seconds=_SETTINGS.sensor_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Runs an update when the source {source.name!r} has changed.",
    )
    def changes(context: dg.SensorEvaluationContext, lakehouse: LakehouseResource) -> dg.SensorResult | dg.SkipReason:
        if _is_busy(context, lakehouse, update.name):
            return dg.SkipReason("an update is under way")
        seen = source_fingerprint(lakehouse.lake, source.name)
        if seen is None:
            return dg.SkipReason("nothing changed")
        request = dg.RunRequest(
            run_key=f"{source.name}-{seen}",
            partition_key=DAYS.get_last_partition_key(),
            run_config=follow_config([source.name]),
            tags={"pkm/source": source.name},
        )
        return dg.SensorResult([request], cursor=seen)

    return changes


@dg.sensor(
    job=embed,
    minimum_interval_seconds=_SETTINGS.sensor_seconds,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Embeds when silver is ahead of the vectors' watermark.",
)
def vectors_behind(context: dg.SensorEvaluationContext, lakehouse: LakehouseResource) -> dg.RunRequest | dg.SkipReason:
    """Ask for a run of the vectors when silver has a snapshot that they have not read."""
    if _is_busy(context, lakehouse, update.name, embed.name):
        return dg.SkipReason("a run that embeds is under way")
    lag = vectors_lag(lakehouse.lake)
    if lag is None:
        return dg.SkipReason("the vectors are up to date")
    # Another model or other code embeds the same snapshot again, and Dagster makes one run of one key.
    return dg.RunRequest(run_key=f"{lakehouse.lake.vector_table}-code-{note_embeddings(1).code_version}-silver-{lag}")


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING, description="Records a failed run and its cause in state."
)
def record_failure(context: dg.RunFailureSensorContext, lakehouse: LakehouseResource) -> None:
    """Write the failure into the run's record."""
    records.end_job(lakehouse.lake.state, context.dagster_run.run_id, "failed", failure_cause(context))


def failure_cause(context: dg.RunFailureSensorContext) -> str:
    """The innermost message of what failed, by step where a step failed."""
    events = context.get_step_failure_events()
    causes = one_line((event.step_key or "", message(event.step_failure_data.error)) for event in events)
    return causes or _end_seen_from_outside(context)


def _end_seen_from_outside(context: dg.RunFailureSensorContext) -> str:
    """Why a run failed in which no step did: its process is gone, and who noticed may have said why just before."""
    failure, engine = dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.ENGINE_EVENT
    logs = context.instance.all_logs(context.dagster_run.run_id, of_type={failure, engine})
    failed_at = max((log.timestamp for log in logs if log.dagster_event_type == failure), default=0.0)
    seen = [
        log.get_dagster_event().message or ""
        for log in logs
        if log.dagster_event_type == engine and 0 <= failed_at - log.timestamp < _MOMENT_SECONDS
    ]
    if seen and seen[-1]:
        # The sentences that follow the first one guess at reasons.
        return seen[-1].removeprefix("[DagsterApiServer] ").partition(". ")[0]
    return context.failure_event.message or "failed without a message"


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Records a finished run in state, and takes a cut of all tables.",
)
def record_success(context: dg.RunStatusSensorContext, lakehouse: LakehouseResource) -> None:
    """Close the run's record, and keep the moment."""
    run_id = context.dagster_run.run_id
    lake = lakehouse.lake
    record = records.read_job(lake.state, run_id)
    if record is None or record.status != "succeeded":
        records.end_job(lake.state, run_id, "succeeded")
        take_cut(lake, run_id)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Records a cancelled run in state.",
)
def record_cancel(context: dg.RunStatusSensorContext, lakehouse: LakehouseResource) -> None:
    """Close the record of a run that somebody stopped."""
    records.end_job(lakehouse.lake.state, context.dagster_run.run_id, "cancelled")


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.QUEUED,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Records a queued run in state.",
)
def record_queued(context: dg.RunStatusSensorContext, lakehouse: LakehouseResource) -> None:
    """Open the record of a run that waits."""
    records.queue_job(lakehouse.lake.state, context.dagster_run.run_id)


ALL = (
    *(_change_sensor(source) for source in _SETTINGS.sources),
    vectors_behind,
    record_queued,
    record_success,
    record_failure,
    record_cancel,
)
