"""Bronze: what was observed, appended and never rewritten. Partitioned by day."""

import datetime as dt
from collections.abc import Sequence
from functools import partial
from itertools import chain

import dagster as dg
from pydantic import Field

from assets.declare import DAYS, declaration
from pkm_pipelines.model.tables import RAW_MEDIA, RAW_NOTES
from pkm_pipelines.operations.ingest import Content, Days, hold_error, ingest
from pkm_pipelines.operations.write import Deltas
from resources.lakehouse import LakehouseResource


class IngestConfig(dg.Config):
    """What a run reads."""

    sources: list[str] = Field(default_factory=list, description="Only these sources; all by default.")
    accept_deletes: bool = Field(default=False, description="Believe a source that has lost most of its notes.")
    follow: bool = Field(
        default=False,
        description="Read the sources from where they were left, whatever day it has become: a run that was asked for "
        "before midnight may start after it.",
    )


def follow_config(sources: Sequence[str] = ()) -> dg.RunConfig:
    """The configuration of a run that follows the sources."""
    config = IngestConfig(sources=list(sources), follow=True)
    return dg.RunConfig(ops={"bronze__raw_notes": config, "bronze__raw_media": config})


@dg.asset(**declaration(RAW_NOTES), partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def raw_notes(context: dg.AssetExecutionContext, config: IngestConfig, lakehouse: LakehouseResource) -> Deltas:
    """Every change of every note of the sources."""
    return _ingest(context, config, lakehouse, "notes")


@dg.asset(**declaration(RAW_MEDIA), partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def raw_media(context: dg.AssetExecutionContext, config: IngestConfig, lakehouse: LakehouseResource) -> Deltas:
    """Every change of every file of the sources that is no note; links and embeds point at them."""
    return _ingest(context, config, lakehouse, "media")


def _ingest(
    context: dg.AssetExecutionContext, config: IngestConfig, lakehouse: LakehouseResource, content: Content
) -> Deltas:
    progress = lakehouse.progress(context)
    days, follows = asked_days(context.partition_key_range)
    read = partial(
        ingest,
        lakehouse.lake,
        content,
        sources=config.sources,
        accept_deletes=config.accept_deletes,
        progress=progress,
        hold=partial(hold_error, lakehouse.lake, context.run.run_id, content),
    )
    parts = [] if config.follow or days is None else [read(days=days)]
    if config.follow or follows:
        parts.append(read())
    return Deltas(chain.from_iterable(parts))


def asked_days(span: dg.PartitionKeyRange) -> tuple[Days | None, bool]:
    """The days of the past that a run's partitions ask for, and whether they ask for the present day.

    The present day follows the sources; the past of those that have one is backfilled.
    """
    first, last, today = _day(span.start), _day(span.end), _day(DAYS.get_last_partition_key())
    if first >= today:
        return None, True
    return Days(first, min(last, today)), last >= today


def _day(key: str) -> dt.date:
    return DAYS.time_window_for_partition_key(key).start.date()
