"""Notes as a batch that chunking takes, parsed as silver would parse them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pkm_pipelines.knowledge.markdown import parse_note
from pkm_pipelines.model.tables import PROCESSED_NOTES

COLUMNS = ("note_id", "source", "path", "title", "tags", "headings", "content")
SCHEMA = pa.schema([PROCESSED_NOTES.column(name).field() for name in COLUMNS])


def note(content: str | None, path: str = "note.md", **values: Any) -> dict[str, Any]:
    """One note; its title, tags and headings are read from `content`."""
    parsed = parse_note(content or "", path)
    headings = [
        {"level": h.level, "text": h.text, "anchor": h.anchor, "start": h.start, "end": h.end} for h in parsed.headings
    ]
    defaults = {
        "note_id": path, "source": "vault", "path": path, "title": parsed.title, "tags": list(parsed.tags),
        "headings": headings, "content": content,
    }  # fmt: skip
    return {**defaults, **values}


def batch(notes: Iterable[Mapping[str, Any]]) -> pa.RecordBatch:
    """Notes as one batch."""
    return pa.RecordBatch.from_pylist([dict(n) for n in notes], SCHEMA)


def vault(root: Path) -> list[dict[str, Any]]:
    """The notes of a folder."""
    paths = sorted(path for path in root.rglob("*.md") if path.is_file())
    return [note(p.read_bytes().decode("utf-8", "replace"), p.relative_to(root).as_posix()) for p in paths]
