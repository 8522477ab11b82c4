"""Silver: the newest state of each note, parsed, and what follows from it. Driven by watermarks, not partitioned."""

import dagster as dg

from assets import lineage
from assets.bronze import raw_media, raw_notes
from assets.declare import KEEP_FRESH, declaration
from pkm_pipelines.model.tables import EXTRACTED_CONCEPTS, KNOWLEDGE_GRAPH, PROCESSED_NOTES
from pkm_pipelines.operations.connect import connect_notes
from pkm_pipelines.operations.extract import extract_concepts
from pkm_pipelines.operations.refine import refine_notes
from pkm_pipelines.operations.write import Deltas
from resources.lakehouse import LakehouseResource


@dg.asset(
    **declaration(PROCESSED_NOTES, lineage.PROCESSED),
    deps=[raw_notes],
    automation_condition=KEEP_FRESH,
)
def processed_notes(context: dg.AssetExecutionContext, lakehouse: LakehouseResource) -> Deltas:
    """Parse the notes that changed, and keep the newest state of each."""
    return Deltas(refine_notes(lakehouse.lake, progress=lakehouse.progress(context)))


@dg.asset(
    **declaration(EXTRACTED_CONCEPTS, lineage.CONCEPTS),
    deps=[processed_notes],
    automation_condition=KEEP_FRESH,
)
def extracted_concepts(context: dg.AssetExecutionContext, lakehouse: LakehouseResource) -> Deltas:
    """Find key phrases and entities in the notes that changed."""
    return Deltas(extract_concepts(lakehouse.lake, progress=lakehouse.progress(context)))


@dg.asset(
    **declaration(KNOWLEDGE_GRAPH, lineage.GRAPH),
    deps=[processed_notes, raw_media],
    automation_condition=KEEP_FRESH,
)
def knowledge_graph(context: dg.AssetExecutionContext, lakehouse: LakehouseResource) -> Deltas:
    """Resolve links, embeds, tags, aliases and mentions of the notes that changed, and of those they affect."""
    return Deltas(connect_notes(lakehouse.lake, progress=lakehouse.progress(context)))
