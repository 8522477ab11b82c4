"""The whole asset graph is a snapshot: a change of it is seen in review. `UPDATE_SNAPSHOTS=1` writes it anew."""

import json
import os
from pathlib import Path

import dagster as dg

from assets import lineage
from pkm_pipelines.definitions import defs
from pkm_pipelines.model import tables

SNAPSHOT = Path(__file__).parents[1] / "data" / "assets" / "graph.json"


def graph() -> dict[str, object]:
    repository = defs.get_repository_def()
    nodes = {}
    for node in repository.asset_graph.asset_nodes:
        nodes[node.key.to_user_string()] = {
            "after": sorted(key.to_user_string() for key in node.parent_keys),
            "checks": sorted(key.name for key in node.check_keys),
            "code_version": node.code_version,
            "group": node.group_name,
            "keeps_fresh": node.automation_condition is not None,
            "kinds": sorted(tag.removeprefix("dagster/kind/") for tag in node.tags if tag.startswith("dagster/kind/")),
            "owners": sorted(node.owners),
            "partitions": type(node.partitions_def).__name__ if node.partitions_def else None,
            "pools": sorted(node.pools or ()),
        }
    jobs = {
        job.name: sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys)
        for job in repository.get_all_jobs()
        if not job.name.startswith("__")
    }
    return {
        "assets": nodes,
        "jobs": jobs,
        "schedules": sorted(schedule.name for schedule in repository.schedule_defs),
        "sensors": sorted(sensor.name for sensor in repository.sensor_defs),
    }


def test_the_asset_graph_is_as_it_was_reviewed() -> None:
    found = json.loads(json.dumps(graph(), sort_keys=True))
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.parent.mkdir(parents=True, exist_ok=True)
        SNAPSHOT.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_asset_explains_itself() -> None:
    for node in defs.get_repository_def().asset_graph.asset_nodes:
        name = node.key.to_user_string()
        assert node.description, name
        assert node.owners, name
        assert node.code_version, name
        metadata = node.metadata
        assert "dagster/column_schema" in metadata, name
        assert "dagster/code_references" in metadata, name
        if node.parent_keys:
            assert "dagster/column_lineage" in metadata, name
        schema = metadata["dagster/column_schema"]
        assert all(column.description for column in schema.columns), name


def test_lineage_names_columns_that_exist() -> None:
    downstream = {
        tables.PROCESSED_NOTES: lineage.PROCESSED,
        tables.EXTRACTED_CONCEPTS: lineage.CONCEPTS,
        tables.KNOWLEDGE_GRAPH: lineage.GRAPH,
        tables.NOTE_METRICS: lineage.METRICS,
        tables.note_embeddings(384): lineage.EMBEDDINGS,
    }
    facts = {"model", "created_at", "source_table", "iceberg_snapshot_id", "processing_stage"}
    for spec, sources in downstream.items():
        names = set(spec.arrow.names)
        assert set(sources) <= names
        if spec.layer == "vectors":
            assert names - set(sources) == facts
        else:
            assert names == set(sources), spec.name
        for origins in sources.values():
            for origin, column in origins:
                origin.column(column)


def test_definitions_load() -> None:
    dg.Definitions.validate_loadable(defs)
