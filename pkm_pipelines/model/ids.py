"""Identities: how notes, changes, chunks and edges get ids that never depend on when they were seen.

All are UUIDv5 (RFC 9562, section 5.5) over a canonical JSON list of their parts, so that two parts
can never run into each other.
"""

from __future__ import annotations

import hashlib
import json
import uuid

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pkm-pipelines.invalid/")


def _uuid(kind: str, *parts: str | int) -> str:
    name = json.dumps([kind, *parts], ensure_ascii=False, separators=(",", ":"))
    return str(uuid.uuid5(_NAMESPACE, name))


def note_id(source: str, first_path: str) -> str:
    """The id of a note that brings none of its own, from where it first appeared."""
    return _uuid("note", source, first_path)


def change_id(source: str, commit_or_version: str | int, path: str, kind: str, content_hash: str | None) -> str:
    """The id of a change, unique in bronze, so that a repeated ingest appends nothing."""
    return _uuid("change", source, commit_or_version, path, kind, content_hash or "")


def chunk_id(note: str, text_hash: str, ordinal: int) -> str:
    """The id of a chunk; `ordinal` counts equal texts within one note, from 0."""
    return _uuid("chunk", note, text_hash, ordinal)


def edge_id(src: str, kind: str, raw_target: str, ordinal: int) -> str:
    """The id of an edge; `ordinal` counts equal targets within one note, from 0."""
    return _uuid("edge", src, kind, raw_target, ordinal)


def sha256(data: bytes) -> str:
    """The SHA-256 of `data`, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
