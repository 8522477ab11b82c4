"""Checks between the layers: keys unique, no orphan edge, nothing missing, the model as declared.

Those that guard what is built upon are blocking: the assets downstream wait until they pass.
"""

from collections.abc import Callable, Sequence

import dagster as dg

from assets.bronze import raw_notes
from assets.gold import note_metrics
from assets.silver import extracted_concepts, knowledge_graph, processed_notes
from assets.vectors import note_embeddings
from pkm_pipelines.operations import checks
from pkm_pipelines.operations.checks import Finding
from pkm_pipelines.operations.stores import Stores
from resources.lakehouse import LakehouseResource


def _declare(
    asset: dg.AssetsDefinition, name: str, find: Callable[[Stores], Finding], *, blocking: bool = True
) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, name=name, description=find.__doc__, blocking=blocking)
    def check(lakehouse: LakehouseResource) -> dg.AssetCheckResult:
        finding = find(lakehouse.lake)
        return dg.AssetCheckResult(
            passed=finding.passed,
            severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN,
            description=finding.message,
            metadata={"count": finding.count, "examples": dg.MetadataValue.json(list(finding.examples))},
        )

    return check


ALL: Sequence[dg.AssetChecksDefinition] = (
    _declare(raw_notes, "change_ids_unique", checks.change_ids_unique),
    _declare(processed_notes, "note_ids_unique", checks.note_ids_unique),
    _declare(processed_notes, "bronze_and_silver_agree", checks.bronze_and_silver_agree),
    _declare(processed_notes, "every_current_note_present", checks.every_current_note_present, blocking=False),
    _declare(extracted_concepts, "concepts_unique", checks.concepts_unique),
    _declare(knowledge_graph, "edge_ids_unique", checks.edge_ids_unique),
    _declare(knowledge_graph, "no_orphan_edge", checks.no_orphan_edge),
    _declare(note_metrics, "metrics_cover_notes", checks.metrics_cover_notes, blocking=False),
    _declare(note_embeddings, "chunk_ids_unique", checks.chunk_ids_unique),
    _declare(note_embeddings, "every_note_embedded", checks.every_note_embedded, blocking=False),
    _declare(note_embeddings, "dimension_and_model_agree", checks.dimension_and_model_agree),
)
