"""From silver's notes and the media beside them to the edges of the knowledge graph.

A link is resolved against the whole vault, so a note that appears, goes or is renamed can change the edges
of notes that were not touched. Which ones is looked up by name: an edge keeps the folded name that its
target is found by (`target_key`), and a change of that name affects exactly those edges. A name that is new
is also looked for in the text of all notes, where it may be an unlinked mention.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.progress import Progress
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.tables import KNOWLEDGE_GRAPH, PROCESSED_NOTES, RAW_MEDIA
from pkm_pipelines.operations.derive import Inputs, inputs_of, slice_deltas
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.operations.vaults import EDGE_COLUMNS, NoteName, Vaults, names_of

_BATCH = 500
# With more names than this changed, making every edge anew costs less than looking for what they touch.
_MANY_NAMES = 2000


def connect_notes(stores: Stores, *, progress: Progress) -> Iterator[Delta]:
    """The edges of every note that changed, and of those whose links or mentions lead elsewhere now."""
    inputs = inputs_of(stores, KNOWLEDGE_GRAPH, [PROCESSED_NOTES, RAW_MEDIA])
    if not inputs.moved or PROCESSED_NOTES.name not in inputs.until:
        return
    vaults = Vaults.load(stores, inputs.until)
    progress.stage("graph", total=vaults.count, unit="notes")
    found = None if inputs.since[PROCESSED_NOTES.name] is None else _changes(stores, inputs)
    if found is None or len(found.names) > _MANY_NAMES:
        yield Delta(
            table=KNOWLEDGE_GRAPH.name,
            rows=_edges(_notes(stores, inputs, None), vaults, progress),
            mode="replace",
            op_id=str(uuid.uuid4()),
            watermarks=inputs.until,
            expect=inputs.marks,
        )
    else:
        affected = found.notes | _pointing_at(stores, found.names)
        if found.note_names:
            affected |= _mentioning(stores, inputs, found.note_names, progress)
        progress.stage("graph", total=len(affected), unit="notes")
        yield from slice_deltas(inputs, "src", _parts(stores, inputs, sorted(affected), vaults, progress))
    progress.done()


class _Changes:
    """What changed: the notes themselves, and the keys that lead elsewhere now, those of notes and all."""

    def __init__(self) -> None:
        self.notes: set[str] = set()
        self.note_names: set[str] = set()
        self.names: set[str] = set()


def _changes(stores: Stores, inputs: Inputs) -> _Changes:
    from pkm_pipelines.knowledge.links import file_keys

    found = _Changes()
    name = PROCESSED_NOTES.name
    if inputs.since[name] != inputs.until[name]:
        before: set[NoteName] = set()
        after: set[NoteName] = set()
        for batch in stores.tables.diff(name, inputs.since[name], inputs.until[name], columns=EDGE_COLUMNS):
            found.notes.update(batch["note_id"].to_pylist())
            alive = batch.filter(pc.is_null(batch["deleted_at"]))
            was = pc.is_in(alive["_change_type"], pa.array(["UPDATE_BEFORE", "DELETE"]))
            before.update(names_of(alive.filter(was)))
            after.update(names_of(alive.filter(pc.invert(was))))
        found.note_names.update(changed.key for changed in before ^ after)
    found.names |= found.note_names
    media = RAW_MEDIA.name
    if media in inputs.until and inputs.since[media] != inputs.until[media]:
        for batch in stores.tables.added(media, inputs.since[media], inputs.until[media], columns=["path"]):
            found.names.update(key for path in batch["path"].to_pylist() for key in file_keys(path))
    return found


def _pointing_at(stores: Stores, names: set[str]) -> set[str]:
    """Notes with an edge that is looked up by one of `names`."""
    from pyiceberg.expressions import In

    if not names:
        return set()
    batches = stores.tables.read(KNOWLEDGE_GRAPH.name, columns=["src"], row_filter=In("target_key", names))
    return {src for batch in batches for src in batch["src"].to_pylist()}


def _mentioning(stores: Stores, inputs: Inputs, names: set[str], progress: Progress) -> set[str]:
    """Notes in whose text one of `names` stands."""
    vaults = Vaults.load(stores, inputs.until, only=names)
    found: set[str] = set()
    for batch in _notes(stores, inputs, None):
        progress.check_cancelled()
        found |= vaults.mentioning(batch)
    return found


def _parts(
    stores: Stores, inputs: Inputs, note_ids: Sequence[str], vaults: Vaults, progress: Progress
) -> Iterator[tuple[Sequence[str], Iterator[pa.RecordBatch]]]:
    for start in range(0, len(note_ids), _BATCH):
        part = note_ids[start : start + _BATCH]
        yield part, _edges(_notes(stores, inputs, part), vaults, progress)


def _notes(stores: Stores, inputs: Inputs, note_ids: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Notes that are alive in the input's snapshot; all of them, or those with the given ids."""
    from pyiceberg.expressions import In

    name = PROCESSED_NOTES.name
    row_filter = None if note_ids is None else In("note_id", set(note_ids))
    for batch in stores.tables.read(name, columns=EDGE_COLUMNS, row_filter=row_filter, snapshot_id=inputs.until[name]):
        alive = batch.filter(pc.is_null(batch["deleted_at"]))
        if alive.num_rows:
            yield alive


def _edges(notes: Iterator[pa.RecordBatch], vaults: Vaults, progress: Progress) -> Iterator[pa.RecordBatch]:
    for batch in notes:
        progress.check_cancelled()
        yield from vaults.edges(batch)
        progress.advance(batch.num_rows)
