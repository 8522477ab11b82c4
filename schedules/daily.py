"""The daily schedule: everything once a day, also when no sensor runs."""

import dagster as dg

from assets.declare import DAYS
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
    day = DAYS.get_last_partition_key(context.scheduled_execution_time)
    return dg.RunRequest(run_key=f"daily-{day}", partition_key=day)
