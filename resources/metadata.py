"""What an asset tells the Dagster UI about the table it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.operations.debt import debt_of
from pkm_pipelines.operations.write import Written

_PREVIEW_ROWS = 5
_PREVIEW_CHARACTERS = 80


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """An Arrow schema as Dagster shows it, with the columns' docs."""
    return dg.TableSchema(
        [
            dg.TableColumn(
                name=field.name,
                type=str(field.type),
                description=(field.metadata or {}).get(b"doc", b"").decode() or None,
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def table_metadata(lake: Lakehouse, table: str, written: Written) -> Mapping[str, Any]:
    """Counts, snapshot, speed and a preview of a table that has just been written."""
    view = lake.table(table)
    rate = written.rows / written.seconds if written.seconds else 0.0
    return {
        "dagster/table_name": table,
        "dagster/row_count": view.row_count,
        "dagster/column_schema": column_schema(view.schema),
        "rows_added": written.rows_added,
        "rows_updated": written.rows_updated,
        "rows_deleted": written.rows_deleted,
        "commits": written.commits,
        view.snapshot_label: str(view.snapshot_id or ""),
        "run_duration_seconds": round(written.seconds, 3),
        "records_per_second": round(rate, 1),
        "preview": dg.MetadataValue.md(preview(view.head(_PREVIEW_ROWS))),
        **_debt(lake, view.name),
        **_vector_index(lake, view.name),
    }


def _debt(lake: Lakehouse, table: str) -> dict[str, int]:
    """What maintenance has to work off, as numbers that the UI plots over time."""
    found = debt_of(lake, table)
    names = (
        ("fragments", "unindexed_rows", "deletion_files", "versions")
        if table.startswith("vectors.")
        else ("files", "small_files", "delete_files", "snapshots", "metadata_bytes")
    )
    return {f"debt/{name}": getattr(found, name) for name in names}


def _vector_index(lake: Lakehouse, table: str) -> dict[str, str | float]:
    """How vectors are searched, and how good the index was found to be when it was last built."""
    if not table.startswith("vectors."):
        return {}
    recall = lake.vectors.recall(table)
    if recall is None or not recall.kept:
        return {"index/kind": "exact search"}
    return {
        "index/kind": recall.kind,
        f"index/recall_at_{recall.depth}": recall.recall,
        "index/rows_when_measured": recall.rows,
    }


def preview(rows: pa.Table) -> str:
    """The first rows as a Markdown table; long values are cut, so that a page of notes stays a page."""
    if not rows.num_rows:
        return "_no rows_"
    names = rows.column_names
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows.to_pylist()]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if len(text) > _PREVIEW_CHARACTERS:
        text = text[: _PREVIEW_CHARACTERS - 1] + "…"
    # The text is somebody's note: nothing in it may end the cell or start markup.
    for character in "\\|`<>[]*_":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", "⏎").replace("\r", "")
