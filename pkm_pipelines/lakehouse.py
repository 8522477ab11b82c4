"""The façade: one lakehouse, its stores opened once, and every verb by name.

The command line, Dagster's resource and a notebook all start here. Verbs import what they need when they are
called: `pkm status` does not pay for a model, `pkm search` not for the warehouse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pkm_pipelines.model.progress import Progress
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from pkm_pipelines.model.records import Problem
    from pkm_pipelines.model.schema import TableSpec
    from pkm_pipelines.operations.doctor import Check
    from pkm_pipelines.operations.ingest import Days
    from pkm_pipelines.operations.status import Status
    from pkm_pipelines.operations.write import Written
    from pkm_pipelines.query.note import NoteView
    from pkm_pipelines.query.search import Hit, Mode
    from pkm_pipelines.tables.view import TableView


class Lakehouse(Stores):
    """A lakehouse of notes. Use it as a context manager, or call `close`."""

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open the lakehouse of `settings`; each store is reached when it is first needed."""
        return cls(settings)

    def update(
        self,
        *,
        sources: Sequence[str] = (),
        days: Days | None = None,
        accept_deletes: bool = False,
        progress: Progress | None = None,
    ) -> list[Written]:
        """Bring every table up to date in this process, without Dagster; returns what was written to each."""
        from pkm_pipelines.operations.pipeline import update

        return update(self, sources=sources, days=days, accept_deletes=accept_deletes, progress=progress)

    def is_current(self) -> bool:
        """Whether an update would find nothing to do."""
        from pkm_pipelines.operations.lag import is_current

        return is_current(self)

    def has_table(self, name: str) -> bool:
        """Whether the table `name` exists; without an embedder there are no vectors."""
        if name == "vectors.note_embeddings":
            return self.vector_table is not None and self.vectors.exists(self.vector_table)
        return self.vectors.exists(name) if name.startswith("vectors.") else self.iceberg.exists(name)

    def table(self, name: str) -> TableView:
        """One table by its name, such as `silver.processed_notes`; raises `TableNotFoundError`."""
        from pkm_pipelines.tables.view import view

        if name == "vectors.note_embeddings":
            name = self.vector_table or name
        return view(name, self.tables, self.vectors)

    def ensure(self, spec: TableSpec) -> None:
        """Create the table of `spec` where it does not exist yet."""
        if spec.layer == "vectors":
            self.vectors.ensure(spec)
        else:
            self.tables.ensure(spec)

    def search(
        self, query: str, *, k: int = 10, mode: Mode = "hybrid", tag: str | None = None, path: str | None = None
    ) -> list[Hit]:
        """The `k` notes that answer `query` best, the best chunk of each; raises `QueryError` on an empty lakehouse."""
        from pkm_pipelines.query.search import search

        return search(self.vectors, self.vector_table, lambda: self.embedder, query, k=k, mode=mode, tag=tag, path=path)

    def sql(self, query: str, *, limit: int | None = None) -> pa.Table:
        """Run one read-only statement over the tables; raises `QueryError`."""
        from pkm_pipelines.query.sql import sql

        return sql(self, query, limit=limit)

    def note(self, path_or_id: str) -> NoteView:
        """One note with its links, backlinks and history; raises `QueryError` if it is unknown or ambiguous."""
        from pkm_pipelines.query.note import note

        return note(self, path_or_id)

    def status(self) -> Status:
        """Tables, sources, runs and lag, as they stand."""
        from pkm_pipelines.operations.status import status

        return status(self)

    def problems(self) -> list[Problem]:
        """What is odd about files of the sources."""
        from pkm_pipelines.operations.status import problems

        return problems(self)

    def doctor(self) -> list[Check]:
        """Check every store, the model and the versions."""
        from pkm_pipelines.operations.doctor import doctor

        return doctor(self)
