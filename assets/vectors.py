"""Vectors: chunks of the notes with their embeddings, in Lance."""

import dagster as dg

from assets import lineage
from assets.declare import KEEP_FRESH, declaration
from assets.silver import processed_notes
from pkm_pipelines.model.tables import note_embeddings as embeddings_spec
from pkm_pipelines.operations.vectorise import embed_notes
from pkm_pipelines.operations.write import Deltas
from resources.lakehouse import LakehouseResource

# The dimension is the model's and is checked against it at run time; 384 is that of the default model.
_SPEC = embeddings_spec(384)


@dg.asset(**declaration(_SPEC, lineage.EMBEDDINGS), deps=[processed_notes], automation_condition=KEEP_FRESH)
def note_embeddings(context: dg.AssetExecutionContext, lakehouse: LakehouseResource) -> Deltas:
    """Cut the notes that changed into chunks, and embed those that are new."""
    return Deltas(embed_notes(lakehouse.lake, progress=lakehouse.progress(context)))
