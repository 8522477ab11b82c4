"""Many writers of one table in one process, and one commit for all that are waiting.

A commit costs the same for one row as for a thousand, and commits to one table cannot overlap. So while one is under
way, what else is submitted waits together and becomes the next: the more writers there are, the more rows a commit
carries. Nobody waits for a clock. A submission is answered when its rows are durable.

Rows are merged in the order in which they were submitted, so the newest wins as it would have one by one. A row that
does not fit fails its own submission and no other.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import pyarrow as pa
from pyiceberg.table.refs import MAIN_BRANCH

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.records import CommitResult, Delta, WriteMode
from pkm_pipelines.storage.iceberg_writer import FileWriter
from pkm_pipelines.tables.frames import Frame, to_stream
from pkm_pipelines.tables.manager import TableManager

# Rows of one commit; what does not fit waits for the next.
GROUP_BYTES = 64 << 20
# Rows that wait, in memory; who submits more waits until there is room.
WAITING_BYTES = 256 << 20


@dataclass
class _Submission:
    rows: pa.Table
    delete_keys: pa.Table | None
    future: Future[CommitResult] = field(default_factory=Future)

    @property
    def bytes(self) -> int:
        return self.rows.nbytes + (0 if self.delete_keys is None else self.delete_keys.nbytes)


class GroupWriter:
    """Writes what many threads, or coroutines, submit to a table: appends to a log, merges into a table with a key.

    It is a context manager; leaving it writes what is waiting. A group's `CommitResult` is that of the whole commit.
    """

    def __init__(
        self,
        tables: TableManager,
        table: str,
        *,
        branch: str = MAIN_BRANCH,
        group_bytes: int = GROUP_BYTES,
        waiting_bytes: int = WAITING_BYTES,
    ) -> None:
        self._tables = tables
        self._table = table
        self._branch = branch
        self._mode: WriteMode = "append" if tables.spec(table).kind == "log" else "merge"
        self._group_bytes = group_bytes
        self._waiting_bytes = waiting_bytes
        self._waiting: deque[_Submission] = deque()
        self._bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"group writer of {table}", daemon=True)
        self._thread.start()

    def submit(self, rows: Frame, delete_keys: Frame | None = None) -> Future[CommitResult]:
        """Submit rows, and keys whose rows go; the future is done when they are durable.

        Waits while too much is waiting already. Raises `StoreError` for what is no frame, and once it is closed.
        """
        doomed = None if delete_keys is None else to_stream(delete_keys).read_all()
        submission = _Submission(to_stream(rows).read_all(), doomed)
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._bytes < self._waiting_bytes)
            if self._is_closed:
                raise StoreError(f"the group writer of table {self._table} is closed; open another one")
            self._waiting.append(submission)
            self._bytes += submission.bytes
            self._changed.notify_all()
        return submission.future

    def write(self, rows: Frame, delete_keys: Frame | None = None) -> CommitResult:
        """Submit, and wait until the rows are durable; raises what `TableManager.write` raises."""
        return self.submit(rows, delete_keys).result()

    async def write_async(self, rows: Frame, delete_keys: Frame | None = None) -> CommitResult:
        """The same for a coroutine; its event loop goes on meanwhile."""
        future = await asyncio.to_thread(self.submit, rows, delete_keys)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Write what is waiting and take no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        while group := self._next_group():
            try:
                fitting = self._fitting(group)
                result = self._commit(fitting) if fitting else None
            except BaseException as error:  # noqa: BLE001 # whoever waits must hear of it, whatever it is
                for submission in group:
                    if not submission.future.done():
                        submission.future.set_exception(error)
            else:
                for submission in fitting:
                    assert result is not None
                    submission.future.set_result(result)

    def _next_group(self) -> list[_Submission]:
        """What is waiting, up to the size of a group; empty when it is closed and all is written.

        Keys that go are a group of their own: within one commit new rows outlive them, whichever came first.
        """
        group: list[_Submission] = []
        with self._changed:
            while not group:
                self._changed.wait_for(lambda: self._is_closed or bool(self._waiting))
                if not self._waiting:
                    break
                group = self._take()
                self._changed.notify_all()
        return group

    def _take(self) -> list[_Submission]:
        group: list[_Submission] = []
        size = 0
        while self._waiting:
            submission = self._waiting[0]
            is_alone = submission.delete_keys is not None
            if group and (is_alone or size + submission.bytes > self._group_bytes):
                break
            self._waiting.popleft()
            self._bytes -= submission.bytes
            if submission.future.set_running_or_notify_cancel():
                group.append(submission)
                size += submission.bytes
                if is_alone:
                    break
        return group

    def _fitting(self, group: Sequence[_Submission]) -> list[_Submission]:
        """Those whose rows fit the table as it is; the others are told what does not."""
        writer = FileWriter(self._tables.iceberg.load(self._table))
        fitting: list[_Submission] = []
        for submission in group:
            try:
                submission.rows = writer.conform(submission.rows)
                writer.split(submission.rows)
            except StoreError as error:
                submission.future.set_exception(error)
            else:
                fitting.append(submission)
        return fitting

    def _commit(self, group: Sequence[_Submission]) -> CommitResult:
        batches = (batch for submission in group for batch in submission.rows.to_batches())
        doomed = group[0].delete_keys
        delta = Delta(self._table, batches, self._mode, str(uuid.uuid4()), delete_keys=doomed)
        return self._tables.write(delta, branch=self._branch)
