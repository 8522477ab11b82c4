"""Who follows which table, and how far behind it is.

Outputs say it themselves: each holds the watermarks of what it was made from. So the project's own derived tables are
consumers like any other. The state adds those that write elsewhere, and pins tell of outputs that are no tables of
this warehouse.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from pyiceberg.table import Table

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import TableNotFoundError
from pkm_pipelines.storage import iceberg_refs
from pkm_pipelines.storage.iceberg_history import ancestors, current_ancestors, watermarks_of
from pkm_pipelines.tables.history import committed_at, rows_changed
from pkm_pipelines.tables.process import Registration, parse_mark_name

if TYPE_CHECKING:
    from pkm_pipelines.tables.manager import TableManager

ConsumerKind = Literal["exactly-once", "at-least-once", "derived"]
MarkOf = Callable[[str, str], int | None]
"""The mark that an output outside of the warehouse (a vector table) has of a table."""
Unread = Callable[[str, Exception], None]
"""Is told of a table that cannot be read, and why."""


class Lag(NamedTuple):
    """How far a mark is behind; None is not known, because history in between has expired."""

    snapshots: int | None
    rows: int | None
    since: dt.datetime | None


@dataclass(frozen=True)
class Consumer:
    """A consumer of `table`; `derived` ones are the project's own operations, named after their output.

    `rows_behind` counts rows that were added, changed or deleted, as the commits tell. `behind_since` is when the first
    commit that it has not read was made.
    """

    name: str
    kind: ConsumerKind
    table: str
    output: str | None
    watermark: int | None
    snapshots_behind: int | None
    rows_behind: int | None
    behind_since: dt.datetime | None


def consumers(
    tables: TableManager, table: str | None = None, outside: MarkOf | None = None, unread: Unread | None = None
) -> list[Consumer]:
    """The consumers of a table, or of all, by table and name.

    Another table that cannot be read fails it, or is told to `unread` and left out.
    """
    load = lru_cache(maxsize=None)(tables.iceberg.load)
    names = [name for name in tables.iceberg.names() if unread is None or name == table or _reads(load, name, unread)]
    found: dict[tuple[str, str], tuple[ConsumerKind, str | None, int | None]] = {}
    for followed, name, kind, output, mark in (
        *_registered(tables, table),
        *_pinned(load, names if table is None else [table], outside),
        *_outputs(load, names),
    ):
        if followed in names and table in (None, followed):
            found[followed, name] = (kind, output, mark)
    return [
        Consumer(name, kind, followed, output, mark, *lag(load(followed), mark))
        for (followed, name), (kind, output, mark) in sorted(found.items())
    ]


def lag(table: Table, mark: int | None) -> Lag:
    """How far `mark` (None is the beginning) is behind the current snapshot of a table."""
    line = list(current_ancestors(table))
    if mark is not None:
        known = {snapshot.snapshot_id for snapshot in ancestors(table, mark)}
        stop = next((i for i, snapshot in enumerate(line) if snapshot.snapshot_id in known), None)
        if stop is None:
            return Lag(None, None, None)
        line = line[:stop]
    return Lag(len(line), sum(map(rows_changed, line)), committed_at(line[-1]) if line else None)


def _reads(load: Load, name: str, unread: Unread) -> bool:
    try:
        load(name)
    except TableNotFoundError:  # dropped meanwhile
        return False
    except Exception as error:  # noqa: BLE001 # told, whatever it is
        unread(name, error)
        return False
    return True


Found = tuple[str, str, ConsumerKind, str | None, int | None]
Load = Callable[[str], Table]


def _registered(tables: TableManager, table: str | None) -> Iterator[Found]:
    if tables.state is None:
        return
    for key, value in tables.state.scan(keys.CONSUMER if table is None else keys.consumers(table)):
        followed, _, name = key.removeprefix(keys.CONSUMER).partition(":")
        known = Registration.parse(value)
        yield followed, name, known.delivery, known.output, known.watermark


def _pinned(load: Load, names: list[str], outside: MarkOf | None) -> Iterator[Found]:
    """Outputs outside of the warehouse; what they had read when they last pinned it is read at least."""
    for followed in names:
        for output, (held, _) in iceberg_refs.pinned(load(followed)).items():
            if output.startswith("vectors."):
                mark = outside(output, followed) if outside else held
                yield followed, output, "derived", output, mark


def _outputs(load: Load, names: list[str]) -> Iterator[Found]:
    for output in names:
        for name, mark in watermarks_of(load(output)).items():
            consumer = parse_mark_name(name)
            if consumer is not None:
                yield *consumer, "exactly-once", output, mark
            else:
                yield name, output, "derived", output, mark
