"""The daily schedule: everything once a day, also when no sensor runs."""

import datetime as dt

import dagster as dg

from assets.bronze import follow_config
from pkm_pipelines import settings
from schedules.jobs import update


@dg.schedule(
    job=update,
    cron_schedule=f"0 {settings.load().daily_hour_utc} * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Update the whole lakehouse once a day.",
)
def daily(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Ask for a run of today's partition; the key of the tick keeps it to one a day."""
    day = context.scheduled_execution_time.astimezone(dt.UTC).date().isoformat()
    return dg.RunRequest(run_key=f"daily-{day}", partition_key=day, run_config=follow_config())
