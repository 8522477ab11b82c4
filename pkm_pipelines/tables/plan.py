"""Which plan carries out a delta: what a table is decides how it is written.

A log is only ever appended to; a state table is merged into by its key, or replaced; a table without a key may be
replaced as a whole or in part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyiceberg.table import Table

from pkm_pipelines.model.errors import CommitConflictError, StoreError
from pkm_pipelines.model.records import Delta
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage.iceberg_commit import Plan
from pkm_pipelines.storage.iceberg_filter import slice_filter
from pkm_pipelines.storage.iceberg_manifests import EVERYTHING
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.tables.append import AppendPlan
from pkm_pipelines.tables.merge import MergePlan
from pkm_pipelines.tables.overwrite import OverwritePlan
from pkm_pipelines.tables.reads import Reads


def plan_of(spec: TableSpec, delta: Delta, memory_bytes: int, reads_of: Callable[[Table], Reads]) -> Plan:
    """The plan of a delta; raises `StoreError` for one that the table cannot take."""
    removes = delta.delete_keys is not None or delta.replace_slice is not None
    if delta.mode == "append":
        if spec.kind == "state":
            key = " and ".join(spec.key)
            raise StoreError(f"table {spec.name} has one row for each {key}: rows are merged, not appended")
        if removes:
            raise StoreError(f"table {spec.name}: an append takes nothing away; use merge or replace")
        return AppendPlan(spec, delta, memory_bytes)
    if spec.kind == "log" and spec.key:
        raise StoreError(f"table {spec.name} is a log: rows are only appended, what was observed is never rewritten")
    if spec.key:
        return MergePlan(spec, delta, memory_bytes, reads_of)
    if delta.mode == "merge" or removes:
        raise StoreError(f"table {spec.name} has no key to merge or delete by; append to it or replace it")
    where = EVERYTHING
    if delta.replace_where is not None:
        where = slice_filter(spec.name, spec.arrow, delta.replace_where)
    return OverwritePlan(delta.rows, where, memory_bytes, reads_of)


class DeferredPlan:
    """A plan that is made when the table is first seen, from the columns, key and partitions that it then has.

    Another process may have changed them since this one last looked. If they change while the plan is being carried
    out, its files are of the wrong shape: the write fails, and can be given again.
    """

    def __init__(self, make: Callable[[Table], Plan]) -> None:
        self._make = make
        self._plan: Plan | None = None
        self._shape = (0, 0)

    @property
    def paths(self) -> Sequence[str]:
        """Every data file begun so far."""
        return self._plan.paths if self._plan else ()

    def __call__(self, table: Table) -> Writes | None:
        """What to write to the table as it is."""
        shape = (table.metadata.current_schema_id, table.metadata.default_spec_id)
        if self._plan is None:
            self._plan, self._shape = self._make(table), shape
        elif self._shape != shape:
            raise CommitConflictError(
                f"table {'.'.join(table.name())}: its columns or partitions were changed while rows were being written;"
                " nothing was written, run it again"
            )
        return self._plan(table)
