"""What every asset of the lakehouse has in common, said once."""

from __future__ import annotations

import datetime as dt
from typing import Any

import dagster as dg

from assets.lineage import Sources, column_lineage
from pkm_pipelines import __version__, settings
from pkm_pipelines.model.schema import TableSpec
from resources.metadata import column_schema

OWNERS = ["team:pkm"]

DAYS = dg.DailyPartitionsDefinition(
    start_date=settings.load().partitions_start.isoformat(), timezone="UTC", end_offset=1
)
"""The days of a log. `end_offset` makes today one of them."""

FRESH = dg.FreshnessPolicy.time_window(fail_window=dt.timedelta(days=2), warn_window=dt.timedelta(hours=26))
"""A daily run keeps every table fresh; a day missed is a warning, two are a failure."""

# `eager()` waits for every partition of the inputs, and a log's past days are rarely all there.
KEEP_FRESH = (
    (
        dg.AutomationCondition.any_deps_updated()
        | dg.AutomationCondition.code_version_changed()
        | dg.AutomationCondition.newly_missing()
    ).since_last_handled()  # pyright: ignore[reportAttributeAccessIssue] # its type leaves no room for assets
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
).with_label("keep_fresh")


def declaration(spec: TableSpec, lineage: Sources | None = None) -> dict[str, Any]:
    """Arguments of `dg.asset` for the table of `spec`: one place for group, kinds, owners, docs and pools."""
    metadata: dict[str, Any] = {
        "dagster/table_name": spec.name,
        "dagster/column_schema": column_schema(spec.arrow),
        "key": ", ".join(spec.key),
        "table_kind": spec.kind,
        "pkm_version": __version__,
    }
    if spec.kind == "log":
        metadata["partition_expr"] = spec.partition[0].column
    if lineage is not None:
        metadata["dagster/column_lineage"] = column_lineage(lineage)
    return {
        "key": dg.AssetKey([spec.layer, spec.table]),
        "group_name": spec.layer if spec.layer != "vectors" else "gold",
        "kinds": {"lance" if spec.layer == "vectors" else "iceberg", "python"},
        "owners": OWNERS,
        "description": spec.doc,
        "metadata": metadata,
        "code_version": str(spec.code_version),
        "pool": spec.name.replace(".", "_"),
        "freshness_policy": FRESH,
        "io_manager_key": "lance" if spec.layer == "vectors" else "iceberg",
    }
