"""Gold: what is ready to be looked at."""

import dagster as dg

from assets import lineage
from assets.declare import KEEP_FRESH, declaration
from assets.silver import extracted_concepts, knowledge_graph, processed_notes
from pkm_pipelines.model.tables import NOTE_METRICS
from pkm_pipelines.operations.measure import measure_notes
from pkm_pipelines.operations.write import Deltas
from resources.lakehouse import LakehouseResource


@dg.asset(
    **declaration(NOTE_METRICS, lineage.METRICS),
    deps=[processed_notes, extracted_concepts, knowledge_graph],
    automation_condition=KEEP_FRESH,
)
def note_metrics(context: dg.AssetExecutionContext, lakehouse: LakehouseResource) -> Deltas:
    """Count, score and rank the notes."""
    return Deltas(measure_notes(lakehouse.lake, progress=lakehouse.progress(context)))
