"""The index of a folder source, rebuilt from `silver.processed_notes` after the state was lost.

A git source needs none of this: its index comes from git again. What a table does not know (sizes and times of the
files) is left out, so the next scan reads every file once, finds the contents unchanged, and fills it in.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pkm_pipelines.model import keys
from pkm_pipelines.model.records import Mutation
from pkm_pipelines.sources.batches import to_us
from pkm_pipelines.sources.overlay import dump
from pkm_pipelines.sources.scan import Known


@dataclass(frozen=True, slots=True)
class NoteRow:
    """What `processed_notes` holds of a note, as far as it is needed here. Times are UTC."""

    note_id: str
    path: str
    content_hash: str | None
    changed_at: dt.datetime
    lsn: int
    is_deleted: bool


def rebuild(source: str, rows: Iterable[NoteRow]) -> Iterator[Mutation]:
    """The state writes that make the notes of `source` known again, in the order of `rows`.

    A note's version goes on from its LSN: it only has to be one that the note never had. Of several notes that stood
    at one path the one that is alive, else the last deleted, has it, as if the state had never been lost. Holds one
    small tuple a path in memory.
    """
    standing: dict[str, tuple[bool, int, str]] = {}
    kept = list(rows)
    for row in kept:
        claim = (not row.is_deleted, row.lsn, row.note_id)
        standing[row.path] = max(claim, standing.get(row.path, claim))
    for row in kept:
        is_parked = standing[row.path][2] != row.note_id
        known = Known(
            note_id=row.note_id,
            hash=None if row.is_deleted else row.content_hash,
            version=row.lsn,
            changed_us=to_us(row.changed_at),
            deleted=row.is_deleted,
            at=row.path if is_parked else None,
        )
        path = f"/{row.note_id}" if is_parked else row.path
        yield Mutation(keys.note(source, path), dump(known.dump()))
        yield Mutation(keys.identity(row.note_id), dump({"source": source, "path": path}))
