"""Bronze: what was observed, appended and never rewritten. Partitioned by day."""

import datetime as dt

import dagster as dg
from pydantic import Field

from assets.declare import DAYS, declaration
from pkm_pipelines.model.tables import RAW_MEDIA, RAW_NOTES
from pkm_pipelines.operations.ingest import Content, Days, ingest
from pkm_pipelines.operations.write import Deltas
from resources.lakehouse import LakehouseResource


class IngestConfig(dg.Config):
    """What a run reads."""

    sources: list[str] = Field(default_factory=list)
    accept_deletes: bool = False


@dg.asset(
    **declaration(RAW_NOTES, code_version="1"), partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run()
)
def raw_notes(context: dg.AssetExecutionContext, config: IngestConfig, lakehouse: LakehouseResource) -> Deltas:
    """Every change of every note of the sources."""
    return _ingest(context, config, lakehouse, "notes")


@dg.asset(
    **declaration(RAW_MEDIA, code_version="1"), partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run()
)
def raw_media(context: dg.AssetExecutionContext, config: IngestConfig, lakehouse: LakehouseResource) -> Deltas:
    """Every change of every file of the sources that is no note; links and embeds point at them."""
    return _ingest(context, config, lakehouse, "media")


def _ingest(
    context: dg.AssetExecutionContext, config: IngestConfig, lakehouse: LakehouseResource, content: Content
) -> Deltas:
    return Deltas(
        ingest(
            lakehouse.lake,
            content,
            sources=config.sources,
            days=past_days(context),
            accept_deletes=config.accept_deletes,
            progress=lakehouse.progress(context),
        )
    )


def past_days(context: dg.AssetExecutionContext) -> Days | None:
    """The days a backfill asks for; None for a run of the present day, which follows the sources."""
    span = context.partition_key_range
    last = DAYS.get_last_partition_key()
    if span.start == last:
        return None
    return Days(_day(span.start), _day(span.end))


def _day(key: str) -> dt.date:
    return DAYS.time_window_for_partition_key(key).start.date()
