"""Where everything stands: tables and how far they have read, sources and what waits in them, runs, oddities.

It only reads: asking for the status never makes a table, moves a mark or starts a run.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import PkmError, SnapshotNotFoundError
from pkm_pipelines.model.records import Problem
from pkm_pipelines.model.tables import ICEBERG_TABLES, PROCESSED_NOTES
from pkm_pipelines.operations.coverage import current_notes
from pkm_pipelines.operations.cuts import INPUTS
from pkm_pipelines.operations.jobs import Job, list_jobs
from pkm_pipelines.operations.stores import Stores

SHOWN_JOBS = 10
# The table of the settings' model goes by this name, as in SQL, whatever its own is.
VECTORS = "vectors.note_embeddings"


@dataclass(frozen=True)
class Mark:
    """How far a table has read one input: `behind` counts the input's snapshots that it has not, None if unknown."""

    input: str
    snapshot_id: int | None
    behind: int | None


@dataclass(frozen=True)
class TableStatus:
    """One table: `snapshot_id` is an Iceberg snapshot or a Lance version, None while the table is empty or absent."""

    name: str
    rows: int
    snapshot_id: int | None
    committed_at: dt.datetime | None
    inputs: tuple[Mark, ...] = ()

    @property
    def is_current(self) -> bool:
        """Whether it has read all of its inputs."""
        return all(mark.behind == 0 for mark in self.inputs)


@dataclass(frozen=True)
class SourceStatus:
    """One source: `cursors` say how far it was read, `pending` whether it has changed since, `error` why not."""

    name: str
    kind: str
    path: str
    notes: int
    problems: int
    cursors: dict[str, Any] = field(default_factory=dict)
    pending: bool | None = None
    error: str | None = None


@dataclass(frozen=True)
class Status:
    """The whole lakehouse. `jobs` are the newest runs first."""

    home: str
    tables: tuple[TableStatus, ...]
    sources: tuple[SourceStatus, ...]
    jobs: tuple[Job, ...]
    problems: int


def status(stores: Stores) -> Status:
    """Look at everything; a source that cannot be read is reported and stops nothing."""
    found = problems(stores)
    return Status(
        home=str(stores.settings.home),
        tables=tuple(_tables(stores)),
        sources=(*(_source(stores, source.name, found) for source in stores.settings.sources), *_gone(stores, found)),
        jobs=tuple(list_jobs(stores.state)[:SHOWN_JOBS]),
        problems=len(found),
    )


def problems(stores: Stores, source: str | None = None) -> list[Problem]:
    """What is odd about files of the sources (of `source` alone), by source and path.

    The state knows what was odd about reading a file, silver what was odd about the note in it.
    """
    prefix = keys.PROBLEM if source is None else keys.problems(source)
    found: set[Problem] = set()
    for key, value in stores.state.scan(prefix):
        name, _, path = key.removeprefix(keys.PROBLEM).partition(":")
        found.update(Problem(name, path, item["code"], item["message"]) for item in json.loads(value))
    found.update(problem for problem in _note_problems(stores) if source in (None, problem.source))
    return sorted(found, key=lambda problem: (problem.source, problem.path, problem.code))


def _note_problems(stores: Stores) -> Iterator[Problem]:
    import pyarrow.compute as pc

    if not stores.iceberg.exists(PROCESSED_NOTES.name):
        return
    columns = ["source", "path", "problems", "deleted_at"]
    for batch in stores.tables.read(PROCESSED_NOTES.name, columns=columns):
        is_odd = pc.and_(pc.greater(pc.list_value_length(batch["problems"]), 0), pc.is_null(batch["deleted_at"]))
        for row in batch.filter(is_odd).to_pylist():
            for problem in row["problems"]:
                yield Problem(row["source"], row["path"], problem["code"], problem["message"])


def _tables(stores: Stores) -> list[TableStatus]:
    found = [_iceberg_table(stores, spec.name) for spec in ICEBERG_TABLES]
    vectors = stores.vector_table
    if vectors is not None:
        found.append(_vector_table(stores, vectors))
    return found


def _iceberg_table(stores: Stores, name: str) -> TableStatus:
    if not stores.iceberg.exists(name):
        return TableStatus(name, 0, None, None)
    snapshot = stores.iceberg.load(name).current_snapshot()
    if snapshot is None:
        return TableStatus(name, 0, None, None)
    from pkm_pipelines.tables.view import view

    return TableStatus(
        name,
        view(name, stores.tables, stores.vectors).row_count,
        snapshot.snapshot_id,
        dt.datetime.fromtimestamp(snapshot.timestamp_ms / 1000, dt.UTC),
        tuple(_mark(stores, item, stores.tables.watermark(name, item)) for item in INPUTS.get(name, ())),
    )


def _vector_table(stores: Stores, name: str) -> TableStatus:
    if not stores.vectors.exists(name):
        return TableStatus(VECTORS, 0, None, None)
    read = stores.vectors.watermark(name, PROCESSED_NOTES.name)
    mark = _mark(stores, PROCESSED_NOTES.name, read)
    return TableStatus(VECTORS, stores.vectors.count(name), stores.vectors.version(name), None, (mark,))


def _mark(stores: Stores, input_table: str, read: int | None) -> Mark:
    if not stores.iceberg.exists(input_table):
        return Mark(input_table, read, 0)
    try:
        return Mark(input_table, read, len(stores.tables.steps(input_table, read)))
    except SnapshotNotFoundError:
        # Rolled back or expired: the next run finds its way from the common ancestor.
        return Mark(input_table, read, None)


def _source(stores: Stores, name: str, found: Sequence[Problem]) -> SourceStatus:
    settings = stores.settings.source(name)
    path = stores.settings.source_path(settings)
    pending: bool | None = None
    error: str | None = None
    try:
        if path.exists():
            pending = stores.source(name).has_changes(stores.state)
        else:
            error = f"{path} does not exist (is its disk mounted?)"
    except PkmError as caught:
        error = str(caught)
    cursors: dict[str, Any] = {}
    for key, value in stores.state.scan(keys.cursor(name)):
        # `cursor:<source>/notes`; another source's name may begin with this one's.
        what = key.removeprefix(keys.cursor(name))
        if what == "" or what.startswith("/"):
            cursors[what.removeprefix("/") or "all"] = json.loads(value)
    return SourceStatus(
        name=name,
        kind=settings.kind,
        path=str(path),
        notes=sum(1 for _ in current_notes(stores, name)),
        problems=sum(problem.source == name for problem in found),
        cursors=cursors,
        pending=pending,
        error=error,
    )


def _gone(stores: Stores, found: Sequence[Problem]) -> Iterator[SourceStatus]:
    """Sources that were read once and are not in the settings any more."""
    for key, _ in stores.state.scan(keys.FLAVOUR):
        name = key.removeprefix(keys.FLAVOUR)
        if all(source.name != name for source in stores.settings.sources):
            yield SourceStatus(
                name=name,
                kind="",
                path="",
                notes=sum(1 for _ in current_notes(stores, name)),
                problems=sum(problem.source == name for problem in found),
                error="it is not in the settings any more; its notes stay as they are",
            )
