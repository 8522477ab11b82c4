"""Jobs: which assets run together, in one process, so that the model is loaded once."""

from __future__ import annotations

import dagster as dg

EVERYTHING = dg.AssetSelection.groups("bronze", "silver", "gold")
DERIVED = dg.AssetSelection.groups("silver", "gold")

update = dg.define_asset_job(
    "update",
    selection=EVERYTHING,
    executor_def=dg.in_process_executor,
    description="Source to vectors. The partition of today follows the sources; past ones backfill git history.",
)

embed = dg.define_asset_job(
    "embed",
    selection=dg.AssetSelection.assets(dg.AssetKey(["vectors", "note_embeddings"])),
    executor_def=dg.in_process_executor,
    description="Embed what silver has and the vectors have not.",
)

refresh = dg.define_asset_job(
    "refresh",
    selection=DERIVED,
    executor_def=dg.in_process_executor,
    description="Bring silver, gold and the vectors up to date with bronze, without reading the sources.",
)

ALL = (update, embed, refresh)
