"""Checks between the layers: keys unique, no orphan edge, nothing missing, the model as declared.

Those that guard what is built upon are blocking: the assets downstream wait until they pass.
"""

from collections.abc import Callable, Iterator, Sequence

import dagster as dg

from assets.bronze import raw_media, raw_notes
from assets.gold import note_metrics
from assets.silver import extracted_concepts, knowledge_graph, processed_notes
from assets.vectors import note_embeddings
from pkm_pipelines.model.tables import (
    EXTRACTED_CONCEPTS,
    KNOWLEDGE_GRAPH,
    NOTE_METRICS,
    PROCESSED_NOTES,
    RAW_MEDIA,
    RAW_NOTES,
)
from pkm_pipelines.operations import checks
from pkm_pipelines.operations.checks import NOTE_EMBEDDINGS, Finding, within_debt
from pkm_pipelines.operations.ingest import raise_held
from pkm_pipelines.operations.stores import Stores
from resources.lakehouse import LakehouseResource

Find = Callable[[Stores], Finding]


def _declare(
    asset: dg.AssetsDefinition,
    *blocking: Find,
    warn: Sequence[Find] = (),
    beside: Sequence[tuple[dg.AssetsDefinition, Find]] = (),
) -> dg.AssetChecksDefinition:
    """The checks of one asset as one step: a step of its own for each would cost more than most of them do.

    Each can still be run alone. `beside` are warnings of assets that this one is made from; they share its step.
    """
    named = [(asset, find) for find in (*blocking, *warn)] + list(beside)
    finds = {(of.key, find.__name__): find for of, find in named}
    specs = [
        dg.AssetCheckSpec(find.__name__, asset=of, description=find.__doc__, blocking=find in blocking)
        for of, find in named
    ]

    @dg.multi_asset_check(name=f"{asset.op.name}_checks", specs=specs, can_subset=True)
    def run(context: dg.AssetCheckExecutionContext, lakehouse: LakehouseResource) -> Iterator[dg.AssetCheckResult]:
        for spec in specs:
            if spec.key not in context.selected_asset_check_keys:
                continue
            finding = finds[spec.asset_key, spec.name](lakehouse.lake)
            yield dg.AssetCheckResult(
                asset_key=spec.asset_key,
                check_name=spec.name,
                passed=finding.passed,
                severity=dg.AssetCheckSeverity.ERROR if spec.blocking else dg.AssetCheckSeverity.WARN,
                description=finding.message,
                metadata={"count": finding.count, "examples": dg.MetadataValue.json(list(finding.examples))},
            )

    return run


@dg.asset_check(asset=raw_notes, additional_deps=[raw_media])
def sources_read(context: dg.AssetCheckExecutionContext, lakehouse: LakehouseResource) -> dg.AssetCheckResult:
    """Every source could be read. Otherwise the run fails here, where it stops nothing of the other sources."""
    raise_held(lakehouse.lake, context.run.run_id)
    return dg.AssetCheckResult(passed=True, description="every source could be read")


ALL: Sequence[dg.AssetChecksDefinition] = (
    sources_read,
    _declare(raw_notes, checks.change_ids_unique, warn=[within_debt(RAW_NOTES.name)]),
    _declare(
        processed_notes,
        checks.note_ids_unique,
        checks.bronze_and_silver_agree,
        warn=[checks.every_current_note_present, within_debt(PROCESSED_NOTES.name)],
    ),
    _declare(extracted_concepts, checks.concepts_unique, warn=[within_debt(EXTRACTED_CONCEPTS.name)]),
    _declare(
        knowledge_graph,
        checks.edge_ids_unique,
        checks.no_orphan_edge,
        warn=[within_debt(KNOWLEDGE_GRAPH.name)],
        beside=[(raw_media, within_debt(RAW_MEDIA.name))],
    ),
    _declare(note_metrics, warn=[checks.metrics_cover_notes, within_debt(NOTE_METRICS.name)]),
    _declare(
        note_embeddings,
        checks.chunk_ids_unique,
        checks.dimension_and_model_agree,
        warn=[checks.every_note_embedded, within_debt(NOTE_EMBEDDINGS)],
    ),
)
