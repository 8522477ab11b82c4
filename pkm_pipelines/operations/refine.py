"""From bronze to silver: the newest state of each note, parsed.

Bronze is read from the watermark in silver's own newest commit on, snapshot by snapshot, grouped so that
one commit holds a bounded number of rows. The merge keeps the newest of each note by (changed_at, ordinal,
lsn), so days may arrive in any order. A deleted note keeps the content it had last, with `deleted_at`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.progress import Progress
from pkm_pipelines.model.records import Delta, Slice
from pkm_pipelines.model.tables import PROCESSED_NOTES, RAW_NOTES
from pkm_pipelines.operations.derive import CODE
from pkm_pipelines.operations.parallel import Spread
from pkm_pipelines.operations.stores import Stores

if TYPE_CHECKING:
    from pkm_pipelines.knowledge.note import Flavour

GROUP_ROWS = 4000
PARSE_ROWS = 250
_NEWEST_FIRST = [(column, "descending") for column in PROCESSED_NOTES.order]


def refine_notes(stores: Stores, *, progress: Progress) -> Iterator[Delta]:
    """What silver lacks of bronze, one delta for every group of bronze snapshots."""
    spec, source = PROCESSED_NOTES, RAW_NOTES
    stores.iceberg.ensure(spec)
    stores.iceberg.ensure(source)
    tables = stores.tables
    since = mark = tables.watermark(spec.name, source.name)
    code = tables.watermark(spec.name, CODE)
    if since is not None and not tables.is_ancestor(source.name, since):
        yield from _follow_rollback(stores, since, progress)
        return
    if code != spec.code_version:
        since = None  # parsed by another version of the code: all of bronze is read again
    groups = list(_groups(stores, since))
    progress.stage("parse", total=sum(rows for _, rows in groups), unit="notes")
    with Spread() as spread:
        for until, _ in groups:
            progress.check_cancelled()
            changes = pa.Table.from_batches(tables.added(source.name, since, until), schema=RAW_NOTES.arrow)
            yield Delta(
                table=spec.name,
                rows=parse_newest(stores, changes, spread, progress),
                mode="merge",
                op_id=str(uuid.uuid4()),
                watermarks={source.name: until, CODE: spec.code_version},
                expect={source.name: mark},
            )
            since = mark = until
    progress.done()


def _groups(stores: Stores, since: int | None) -> Iterator[tuple[int, int]]:
    """(last snapshot, rows) of each group of bronze snapshots after `since`."""
    rows, last = 0, None
    for snapshot_id, added in stores.tables.steps(RAW_NOTES.name, since):
        if rows and rows + added > GROUP_ROWS:
            assert last is not None
            yield last, rows
            rows = 0
        rows, last = rows + added, snapshot_id
    if last is not None:
        yield last, rows


def _history(stores: Stores, note_ids: Sequence[str]) -> pa.Table:
    from pyiceberg.expressions import In

    reader = stores.tables.read(RAW_NOTES.name, row_filter=In("note_id", set(note_ids)))
    return pa.Table.from_batches(reader, schema=RAW_NOTES.arrow)


def _follow_rollback(stores: Stores, since: int, progress: Progress) -> Iterator[Delta]:
    """Bronze was rolled back below the watermark: what it lost, and what it has instead, is looked at again."""
    until = stores.iceberg.snapshot_id(RAW_NOTES.name)
    changed = stores.tables.diff(RAW_NOTES.name, since, until, columns=["change_id", "note_id"]).read_all()
    note_ids = changed["note_id"].unique().to_pylist()
    progress.stage("parse again after a rollback", total=len(note_ids), unit="notes")
    left = _history(stores, note_ids) if note_ids else RAW_NOTES.arrow.empty_table()
    with Spread() as spread:
        yield Delta(
            table=PROCESSED_NOTES.name,
            rows=parse_newest(stores, left, spread, progress),
            # Not a merge: the rows that are there are newer than those that are right now.
            mode="replace",
            replace_where=Slice("note_id", tuple(note_ids)),
            op_id=str(uuid.uuid4()),
            watermarks={} if until is None else {RAW_NOTES.name: until},
            expect={RAW_NOTES.name: since},
        )
    progress.done()


def parse_newest(stores: Stores, changes: pa.Table, spread: Spread, progress: Progress) -> Iterator[pa.RecordBatch]:
    """Rows of silver for the newest of `changes` of each note, in batches."""
    newest = newest_of_each(changes)
    newest = _settle_deleted(stores, newest)
    flavour_of: dict[str, Flavour] = {
        source: stores.flavour(source) for source in newest["source"].unique().to_pylist()
    }
    parse = partial(parse_batch, flavour_of=flavour_of)
    for batch in spread.map(parse, newest.to_batches(max_chunksize=PARSE_ROWS)):
        progress.check_cancelled()
        yield batch
        progress.advance(batch.num_rows)


def parse_batch(batch: pa.RecordBatch, flavour_of: Mapping[str, Flavour]) -> pa.RecordBatch:
    """Parse rows of bronze into rows of silver; a deleted note is parsed like one that is alive, and marked."""
    from pkm_pipelines.knowledge.language import detect
    from pkm_pipelines.knowledge.markdown import parse_notes

    with_content = pc.is_valid(batch["content"])
    deleted = pc.equal(batch["change_type"], "DELETE")
    kinds = pc.if_else(with_content, "UPDATE_AFTER", batch["change_type"])
    parsed = parse_notes(batch.set_column(2, RAW_NOTES.arrow.field(2), kinds), flavour_of, detect=detect)
    deleted_at = pc.if_else(deleted, batch["changed_at"], pa.scalar(None, batch["changed_at"].type))
    position = parsed.schema.get_field_index("deleted_at")
    return parsed.set_column(position, parsed.schema.field(position), deleted_at)


def newest_of_each(changes: pa.Table) -> pa.Table:
    """The newest row of each note."""
    if not changes.num_rows:
        return changes
    numbered = changes.select(["note_id", *PROCESSED_NOTES.order]).append_column("row", pa.arange(0, changes.num_rows))
    ordered = numbered.sort_by([("note_id", "ascending"), *_NEWEST_FIRST])
    ids = ordered["note_id"].combine_chunks()
    is_first = pa.concat_arrays([pa.array([True]), pc.not_equal(ids[1:], ids[:-1])])
    return changes.take(ordered["row"].filter(is_first))


def _settle_deleted(stores: Stores, newest: pa.Table) -> pa.Table:
    """Give each deleted note the content it had last, as far as bronze still holds it.

    A note counts as deleted if its newest change here is a delete, or if silver holds its tombstone: then an
    older change has come in late, and may be the content that the tombstone lacked.
    """
    from pyiceberg.expressions import NotNull

    spec = PROCESSED_NOTES
    deleted = set(newest.filter(pc.equal(newest["change_type"], "DELETE"))["note_id"].to_pylist())
    for batch in stores.tables.read(spec.name, columns=["note_id"], row_filter=NotNull("deleted_at")):
        deleted.update(batch["note_id"].to_pylist())
    deleted &= set(newest["note_id"].to_pylist())
    if not deleted:
        return newest
    history = _history(stores, sorted(deleted))
    lived = newest_of_each(history.filter(pc.not_equal(history["change_type"], "DELETE")))
    content = {row["note_id"]: row for row in lived.select(["note_id", "content", "content_hash"]).to_pylist()}
    rows = newest_of_each(history).to_pylist()
    for row in rows:
        if row["change_type"] == "DELETE":
            row.update(content.get(row["note_id"], {}))
    others = newest.filter(pc.invert(pc.is_in(newest["note_id"], pa.array(sorted(deleted), pa.string()))))
    return pa.concat_tables([others, pa.Table.from_pylist(rows, schema=newest.schema)])
