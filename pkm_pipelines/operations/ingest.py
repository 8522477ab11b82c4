"""From a source to bronze: every observed change becomes one row, exactly once.

Each batch takes three steps: an *intent* in state that names the commit and the cursor to move, the
Iceberg commit that carries the intent's op id, and the cursor itself. A run that finds an open intent
looks its op id up in the table: landed, the cursor moves; not landed, the intent is dropped and the
source yields the same changes again. So a kill at any point repeats nothing and loses nothing.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import pyarrow as pa

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import SourceError
from pkm_pipelines.model.ids import change_id
from pkm_pipelines.model.progress import Progress
from pkm_pipelines.model.records import CommitResult, Delta, MediaChange, Mutation, NoteChange, Problem, SourceBatch
from pkm_pipelines.model.tables import PROCESSED_NOTES, RAW_MEDIA, RAW_NOTES
from pkm_pipelines.operations.stores import Stores

Content = Literal["notes", "media"]
_RECOVERED_AT_ONCE = 2000
_TABLES = {"notes": RAW_NOTES, "media": RAW_MEDIA}


@dataclass(frozen=True)
class Days:
    """An inclusive range of days of a log, UTC."""

    first: dt.date
    last: dt.date


def ingest(
    stores: Stores,
    content: Content,
    *,
    sources: Sequence[str] = (),
    days: Days | None = None,
    accept_deletes: bool = False,
    progress: Progress,
    hold: Callable[[SourceError], None] | None = None,
) -> Iterator[Delta]:
    """What there is to append to bronze, one delta a batch; the caller commits each before it asks for the next.

    Without `days` each source is followed from where it was left. With `days` the history of git sources
    is appended for that range, and cursors do not move; a folder's past cannot be observed again, which is
    told through `progress.note`. `sources` names some of the settings' sources; all by default.

    Raises `SourceError` for sources that cannot be read and `SourceVanishedError` for one that lost too
    many notes at once, after the other sources have been read. If there are any, `hold` may take the error instead.
    """
    spec = _TABLES[content]
    stores.iceberg.ensure(spec)
    names = tuple(sources) or tuple(source.name for source in stores.settings.sources)
    resolve_intents(stores, spec.name)
    failed: list[SourceError] = []
    for name in names:
        try:
            yield from _ingest_source(stores, name, content, days, accept_deletes, progress)
        except SourceError as error:
            failed.append(error)
        progress.done()
    if not failed:
        return
    error = failed[0] if len(failed) == 1 else SourceError("; ".join(map(str, failed)))
    if hold is None or len(failed) == len(names):
        raise error
    hold(error)


def hold_error(stores: Stores, run_id: str, content: Content, error: SourceError) -> None:
    """Keep it until `raise_held`: the run goes on with what the other sources had to say, and fails then."""
    stores.state.put(keys.unread(run_id, content), str(error).encode())


def raise_held(stores: Stores, run_id: str) -> None:
    """Raise `SourceError` if a source could not be read in the run."""
    found = dict(stores.state.scan(keys.unread(run_id)))
    if found:
        stores.state.apply([Mutation(key, None) for key in found])
        # Notes and media mostly fail alike.
        raise SourceError("; ".join(dict.fromkeys(value.decode() for value in found.values())))


def _ingest_source(
    stores: Stores, name: str, content: Content, days: Days | None, accept_deletes: bool, progress: Progress
) -> Iterator[Delta]:
    source = stores.source(name)
    stage = f"{name}: {content}"
    progress.stage(stage, total=None, unit=content)
    now = dt.datetime.now(dt.UTC)
    if days is None:
        if content == "notes":
            recover(stores, name, progress)
            batches = source.notes(stores.state, now, allow_vanish=accept_deletes)
        else:
            batches = source.media(stores.state, now, allow_vanish=accept_deletes)
    elif stores.settings.source(name).kind == "folder":
        progress.note(
            f"{name}: the past of a folder cannot be observed again; nothing to do for {days.first}…{days.last}"
        )
        return
    elif content == "media":
        return  # a git history is of notes; the media of a repository are those of its newest commit
    else:
        batches = source.history(stores.state, days.first, days.last)
    for batch in batches:
        progress.check_cancelled()
        if batch.total is not None:
            progress.stage(stage, total=batch.total, unit=content)
        record_problems(stores, name, batch.problems, batch.resolved_problems)
        if batch.changes:
            yield _delta(stores, content, batch, progress)
        elif batch.mutations:
            stores.state.apply(batch.mutations)
    if content == "notes":
        stores.remember_flavour(name)


def recover(stores: Stores, name: str, progress: Progress) -> bool:
    """Give a folder source its index back from silver, if the state was lost and silver was not; returns whether.

    Without it each note would be new, and its id might be another one than the tables know it by.
    """
    from pyiceberg.expressions import EqualTo

    from pkm_pipelines.sources.rebuild import NoteRow, rebuild

    notes = PROCESSED_NOTES.name
    is_known = any(True for _ in stores.state.scan(keys.notes(name), limit=1))
    if is_known or stores.settings.source(name).kind != "folder" or not stores.iceberg.exists(notes):
        return False
    columns = ["note_id", "path", "content_hash", "changed_at", "lsn", "deleted_at"]
    rows = stores.tables.read(notes, columns=columns, row_filter=EqualTo("source", name)).read_all()
    if not rows.num_rows:
        return False
    progress.note(f"{name}: the state was lost; its {rows.num_rows} notes are known again from {notes}")
    values = zip(*(rows[column].to_pylist() for column in columns), strict=True)
    known = (NoteRow(*row[:5], is_deleted=row[5] is not None) for row in values)
    mutations = rebuild(name, known)
    while part := list(islice(mutations, _RECOVERED_AT_ONCE)):
        stores.state.apply(part)
    return True


def _delta(stores: Stores, content: Content, batch: SourceBatch, progress: Progress) -> Delta:
    spec = _TABLES[content]
    op_id = str(uuid.uuid4())
    now = dt.datetime.now(dt.UTC)
    lsns = stores.state.next_lsns(len(batch.changes))
    mutations = batch.mutations
    if content == "notes":
        rows = note_rows([c for c in batch.changes if isinstance(c, NoteChange)], lsns, now)
    else:
        rows, gone = media_rows(stores, [c for c in batch.changes if isinstance(c, MediaChange)], lsns, now)
        # Not seen, so not remembered: the next run finds what has become of them.
        unseen = {keys.file(problem.source, problem.path) for problem in gone}
        mutations = tuple(mutation for mutation in mutations if mutation.key not in unseen)
        for problem in gone:
            progress.note(f"{problem.source}: {problem.path}: {problem.message}")
    intent = {"table": spec.name, "at": now.isoformat(), "mutations": [_dump(m) for m in mutations]}
    stores.state.put(keys.intent(op_id), json.dumps(intent).encode())

    def committed(_: CommitResult) -> None:
        stores.state.apply([*mutations, Mutation(keys.intent(op_id), None)])
        progress.advance(len(batch.changes))

    return Delta(
        table=spec.name,
        rows=[rows],
        mode="append",
        op_id=op_id,
        properties={"pkm.lsn-range": f"{lsns.start}-{lsns.stop - 1}"},
        committed=committed,
    )


def resolve_intents(stores: Stores, table: str) -> int:
    """Finish or drop the commits of `table` that an earlier run left open; returns how many there were."""
    count = 0
    for key, value in list(stores.state.scan(keys.INTENT)):
        intent = json.loads(value)
        if intent["table"] != table:
            continue
        count += 1
        op_id = key.removeprefix(keys.INTENT)
        mutations = [_load(m) for m in intent["mutations"]] if stores.tables.landed(table, op_id) else []
        stores.state.apply([*mutations, Mutation(key, None)])
    return count


def _dump(mutation: Mutation) -> list[str | None]:
    return [mutation.key, None if mutation.value is None else mutation.value.decode()]


def _load(pair: list[str | None]) -> Mutation:
    key, value = pair
    assert key is not None
    return Mutation(key, None if value is None else value.encode())


def record_problems(stores: Stores, source: str, problems: Iterable[Problem], resolved: Iterable[str] = ()) -> None:
    """Write the problems of files to state, and drop those of files that are right again."""
    by_path: dict[str, list[Problem]] = {}
    for problem in problems:
        by_path.setdefault(problem.path, []).append(problem)
    mutations = [Mutation(keys.problem(source, path), None) for path in resolved if path not in by_path]
    for path, found in by_path.items():
        value = [{"code": p.code, "message": p.message} for p in found]
        mutations.append(Mutation(keys.problem(source, path), json.dumps(value, ensure_ascii=False).encode()))
    if mutations:
        stores.state.apply(mutations)


def note_rows(changes: Sequence[NoteChange], lsns: range, now: dt.datetime) -> pa.RecordBatch:
    """Rows of `bronze.raw_notes`, one a change, in order.

    Bytes that are not valid UTF-8, or hold NUL, are kept as they are in `content_bytes`; the text then has
    U+FFFD in their place, as CommonMark 0.31 section 2.3 asks for NUL.
    """
    rows: list[dict[str, object]] = []
    for change, lsn in zip(changes, lsns, strict=True):
        text, raw = decode(change.content)
        rows.append(
            {
                "change_id": change.change_id,
                "lsn": lsn,
                "change_type": change.change_type,
                "source": change.source,
                "note_id": change.note_id,
                "path": change.path,
                "previous_path": change.previous_path,
                "content": text,
                "content_bytes": raw,
                "content_hash": change.content_hash,
                "size_bytes": None if change.content is None else len(change.content),
                "modified_at": change.modified_at,
                "version": change.version,
                "commit_id": change.commit_id,
                "author": change.author,
                "ordinal": change.ordinal,
                "changed_at": change.changed_at,
                "ingested_at": now,
                "partition_date": change.partition_date,
                "problems": [{"code": p.code, "message": p.message} for p in change.problems],
            }
        )
    return pa.RecordBatch.from_pylist(rows, schema=RAW_NOTES.arrow)


def decode(content: bytes | None) -> tuple[str | None, bytes | None]:
    """The text of a note, and its bytes where the text alone would lose something."""
    if content is None:
        return None, None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode(errors="replace")
    else:
        if "\0" not in text:
            return text, None
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}"), content


def media_rows(
    stores: Stores, changes: Sequence[MediaChange], lsns: range, now: dt.datetime
) -> tuple[pa.RecordBatch, list[Problem]]:
    """Rows of `bronze.raw_media`, the bytes of each file put into the object store first.

    Also the files that went while they were being read; they have no row.
    """
    rows: list[dict[str, object]] = []
    gone: list[Problem] = []
    for change, lsn in zip(changes, lsns, strict=True):
        digest: str | None = None
        if change.open is not None:
            try:
                digest, _ = stores.objects.put_stream(change.open())
            except SourceError as error:
                gone.append(Problem(change.source, change.path, "gone-while-read", str(error)))
                continue
        version = change.commit_id or change.version or 0
        rows.append(
            {
                "change_id": change_id(change.source, version, change.path, change.change_type, digest),
                "lsn": lsn,
                "change_type": change.change_type,
                "source": change.source,
                "path": change.path,
                "content_hash": digest,
                "size_bytes": change.size_bytes,
                "modified_at": change.modified_at,
                "version": change.version,
                "commit_id": change.commit_id,
                "ordinal": change.ordinal,
                "changed_at": change.changed_at,
                "ingested_at": now,
                "partition_date": change.partition_date,
            }
        )
    return pa.RecordBatch.from_pylist(rows, schema=RAW_MEDIA.arrow), gone
