"""Following a table: its changes are given to a function, each exactly once or at least once.

A consumer reads from its watermark to the present. What it reads is a *window*: two snapshots, both pinned against
expiry in one catalog commit before the function is called (`iceberg_refs.claim`). A window that was begun is ended
before another one begins, also by a process that takes over.

**Exactly once**, where the function answers with deltas for one output table. The watermark is part of the output's own
commit and asserted by it, so data and mark move in one step. Where there are several deltas the last one moves the
mark. Each before it says in its own commit, by marks too, how many of which window are written: expiry keeps the newest
marks, so whoever takes over knows where to go on. The function must answer with the same deltas when it is given the
same changes again; those that are written are passed over.

**At least once**, where the function writes elsewhere. The mark moves in the state after the function has returned: a
process that dies in between gives the same changes to it again. The pins say as much, so a lost state loses nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import pyarrow as pa

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import SnapshotNotFoundError, StoreError, TableNotFoundError
from pkm_pipelines.model.records import CommitResult, Delta
from pkm_pipelines.storage import iceberg_refs
from pkm_pipelines.storage.iceberg_history import tells_all_since, watermarks_of

if TYPE_CHECKING:
    from pkm_pipelines.tables.manager import TableManager
    from pkm_pipelines.tables.registry import Lease, Registry

Handler = Callable[[pa.RecordBatchReader], Delta | Iterable[Delta] | None]
"""Is given the changes of a window as a stream; answers with what to write to the output, or with nothing."""

Delivery = Literal["exactly-once", "at-least-once"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OPERATIONS = uuid.UUID("3f1c7a2e-6d0b-5b8e-9a44-1f0e8c2d7b61")


class ProcessOptions(TypedDict, total=False):
    """The options of `process`."""

    output: str | None
    columns: Sequence[str] | None
    net: bool
    lease: Lease | None


@dataclass(frozen=True)
class Processed:
    """How far a consumer came: from `since` to `until`, and the commits that were made to its output for it."""

    table: str
    consumer: str
    since: int | None
    until: int | None
    commits: tuple[CommitResult, ...] = ()


@dataclass(frozen=True)
class Registration:
    """A consumer as the state knows it; `watermark` is its mark if nothing else says it."""

    delivery: Delivery
    output: str | None
    registered_at: str
    watermark: int | None = None

    @staticmethod
    def parse(value: bytes) -> Registration:
        """From its value in the state."""
        return Registration(**json.loads(value))

    def encode(self) -> bytes:
        """As a value of the state."""
        return json.dumps(self.__dict__).encode()


def process(
    tables: TableManager,
    table: str,
    consumer: str,
    handle: Handler,
    *,
    output: str | None = None,
    columns: Sequence[str] | None = None,
    net: bool = False,
    lease: Lease | None = None,
) -> Processed:
    """Give `handle` the changes of `table` since `consumer` last read it, up to now.

    With `output` each change has its effect in that table exactly once: `handle` answers with deltas for it, which are
    written with the watermark. Without it `handle` writes elsewhere by itself, answers None, and is given each change
    **at least once**. `columns` and `net` are those of `TableManager.changes`. `lease` is that of the output.

    Raises `StoreError` for a bad name or an answer that does not fit, `SnapshotNotFoundError` if the watermark has
    expired, `CommitConflictError` if another process was quicker, and whatever `handle` raises.
    """
    if not _NAME.fullmatch(consumer):
        raise StoreError(f"consumer {consumer!r}: a name has letters, digits, '-' and '_', and at most 64 of them")
    if output == table:
        raise StoreError(f"consumer {consumer}: it cannot write to {table}, which it follows")
    target = tables.iceberg.snapshot_id(table)
    delivery = (
        _AtLeastOnce(tables, table, consumer) if output is None else _ExactlyOnce(tables, table, consumer, output)
    )
    since = mark = delivery.mark()
    commits: list[CommitResult] = []
    # A window that was begun before, if there is one, and then the one up to now.
    for _ in range(2):
        if target is None or mark == target:
            break
        delivery.register()
        until = delivery.claim(mark, target)
        answer = handle(tables.changes(table, mark, until, columns, net=net))
        commits += delivery.finish(answer, mark, until, lease)
        mark = until
    return Processed(table, consumer, since, mark, tuple(commits))


def forget(tables: TableManager, table: str, consumer: str) -> None:
    """Forget a consumer that is no more: its registration and its pins. A mark in an output's history stays there."""
    if tables.state is not None:
        key = keys.consumer(table, consumer)
        known = tables.state.get(key)
        output = None if known is None else Registration.parse(known).output
        if output is not None:
            tables.state.delete(keys.watermark(output, mark_name(table, consumer)))
        tables.state.delete(key)
    iceberg_refs.unpin(tables.iceberg, table, consumer)


def mark_name(table: str, consumer: str) -> str:
    """What the mark of a consumer is called among the watermarks of its output.

    An output may have several consumers of one table. The name has no dot, so it is never taken for a table.
    """
    return f"{consumer}@{table.replace('.', '/')}"


def parse_mark_name(name: str) -> tuple[str, str] | None:
    """The table and the consumer of such a name; None for any other."""
    consumer, _, table = name.partition("@")
    return (table.replace("/", "."), consumer) if table and _NAME.fullmatch(consumer) else None


class _Consumer:
    """What both kinds have in common."""

    delivery: Delivery

    def __init__(self, tables: TableManager, table: str, consumer: str, output: str | None = None) -> None:
        self._tables = tables
        self._table = table
        self._consumer = consumer
        self._output = output
        self._key = keys.consumer(table, consumer)

    def registration(self) -> Registration | None:
        """What the state knows."""
        value = self._state.get(self._key) if self._state is not None else None
        return None if value is None else Registration.parse(value)

    def register(self) -> None:
        """Let the state know of the consumer; raises `StoreError` if it knows another one of that name."""
        known = self.registration()
        if known is not None and (known.delivery, known.output) != (self.delivery, self._output):
            raise StoreError(
                f"consumer {self._consumer} of {self._table} writes to {known.output or 'another place'},"
                f" {known.delivery}; give this one another name, or forget the other"
            )
        if known is None:
            self._put(None)

    def claim(self, since: int | None, target: int) -> int:
        """Pin the window that begins at `since`; returns where it ends: at `target`, unless one was begun before."""
        return iceberg_refs.claim(self._tables.iceberg, self._table, self._consumer, current=since, upcoming=target)

    def _put(self, watermark: int | None) -> None:
        if self._state is not None:
            known = self.registration()
            now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            at = now if known is None else known.registered_at
            self._state.put(self._key, Registration(self.delivery, self._output, at, watermark).encode())

    @property
    def _state(self) -> Registry | None:
        return self._tables.state


class _ExactlyOnce(_Consumer):
    """The output's own commit is the judge of the mark, and of how much of a window is written."""

    delivery = "exactly-once"

    def __init__(self, tables: TableManager, table: str, consumer: str, output: str) -> None:
        super().__init__(tables, table, consumer, output)
        self._name = output
        self._mark = mark_name(table, consumer)
        # No consumer can have such a name, so these are taken for nobody's mark.
        self._written = mark_name(table, f"{consumer}#written")
        self._until = mark_name(table, f"{consumer}#until")
        self._marks: dict[str, int] = {}

    def mark(self) -> int | None:
        """How far the consumer has read; raises `SnapshotNotFoundError` if the output has told it and forgotten."""
        with contextlib.suppress(TableNotFoundError):
            loaded = self._tables.iceberg.load(self._name)
            self._marks = watermarks_of(loaded)
            if self._mark not in self._marks and self._has_read() and not tells_all_since(loaded, None):
                raise SnapshotNotFoundError(
                    f"consumer {self._consumer} of {self._table}: how far it has read is not known any more, because"
                    f" the snapshots of {self._name} that told it were expired by another engine; to begin anew empty"
                    " that table and forget the consumer"
                )
        return self._marks.get(self._mark)

    def _has_read(self) -> bool:
        """Whether it has read something, as the copy of its mark and its pins tell."""
        if self._state is not None and self._state.get(keys.watermark(self._name, self._mark)) is not None:
            return True
        held, _ = iceberg_refs.pinned(self._tables.iceberg.load(self._table)).get(self._consumer, (None, None))
        return held is not None

    def claim(self, since: int | None, target: int) -> int:
        """A window of which something is written is the one to be ended, whatever the pins say."""
        if not self._marks.get(self._written):
            return super().claim(since, target)
        until = self._marks[self._until]
        iceberg_refs.pin(self._tables.iceberg, self._table, self._consumer, current=since, upcoming=until)
        return until

    def finish(
        self, answer: Delta | Iterable[Delta] | None, since: int | None, until: int, lease: Lease | None
    ) -> Iterator[CommitResult]:
        """Write the deltas, the last one with the mark; without any, the mark alone."""
        begun = self._marks.get(self._written, 0)
        held: Delta | None = None
        number = 0
        for delta in () if answer is None else (answer,) if isinstance(answer, Delta) else answer:
            if held is not None:
                number += 1
                if number > begun:
                    yield self._write(held, {self._until: until, self._written: number}, lease)
                # What follows may be read from the same stream of changes.
                deque(held.rows, maxlen=0)
            held = delta
        if number < begun:
            raise StoreError(
                f"consumer {self._consumer} of {self._table}: {begun} deltas of the same changes and more to come were"
                f" written before, and now its function answered with {number + (held is not None)}; it must answer"
                " with the same ones each time"
            )
        last = {self._mark: until, self._written: 0} if begun or number else {self._mark: until}
        yield self._write(held or self._empty(), last, lease)

    def _write(self, delta: Delta, marks: Mapping[str, int], lease: Lease | None) -> CommitResult:
        """Write a delta with its marks, if the output's are those that were seen last."""
        if delta.table != self._name:
            raise StoreError(
                f"consumer {self._consumer} of {self._table}: it writes to {self._name}, and a delta for {delta.table}"
                " cannot be part of the same commit"
            )
        seen = {name: self._marks.get(name) for name in (self._mark, self._written, self._until)}
        operation = " ".join(map(str, (self._table, self._consumer, *seen.values(), *marks.items())))
        result = self._tables.write(
            replace(
                delta,
                op_id=str(uuid.uuid5(_OPERATIONS, operation)),
                watermarks={**delta.watermarks, **marks},
                expect={**(delta.expect or {}), **seen},
            ),
            lease=lease,
        )
        self._marks.update(marks)
        return result

    def _empty(self) -> Delta:
        kind = self._tables.spec(self._name).kind
        return Delta(self._name, (), "append" if kind == "log" else "merge", "")


class _AtLeastOnce(_Consumer):
    """The state is the judge of the mark, and what is pinned where the state was lost."""

    delivery = "at-least-once"

    def mark(self) -> int | None:
        """How far the consumer has read."""
        loaded = self._tables.iceberg.load(self._table)
        known = self.registration()
        mark = None if known is None else known.watermark
        if mark is None or loaded.metadata.snapshot_by_id(mark) is None:
            held, _ = iceberg_refs.pinned(loaded).get(self._consumer, (None, None))
            return mark if held is None else held
        return mark

    def finish(self, answer: Any, since: int | None, until: int, lease: Lease | None) -> Iterator[CommitResult]:
        """Move the mark: first in the state, then the pin, so that what is marked is always pinned."""
        if answer is not None:
            raise StoreError(
                f"consumer {self._consumer} of {self._table}: its function answered with something to write; name the"
                " table as `output`"
            )
        self._put(until)
        iceberg_refs.pin(self._tables.iceberg, self._table, self._consumer, current=until, upcoming=until)
        yield from ()
