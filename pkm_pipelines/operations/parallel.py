"""Pure functions over batches, on all cores: the transforms of `knowledge/` hold Python's lock, so threads do not help.

Processes cost half a second to start, so a few hundred notes are done here and only a large job is spread. At most
a few batches are under way at once, results come in order, and a worker ends by itself when its parent is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Self

import pyarrow as pa

# Fewer rows than this are done before the workers would have started.
SPREAD_ROWS = 1500

Transform = Callable[[pa.RecordBatch], pa.RecordBatch]


class Spread:
    """Workers for one operation, started when a job turns out to be large. Use it as a context manager."""

    def __init__(self) -> None:
        self._cores = os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def map(self, transform: Transform, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """`transform` of each batch, in order; in this process for a small job, on all cores for a large one.

        `transform` must be picklable: a module's function, or a `functools.partial` of one. What it raises is
        raised here.
        """
        source = iter(batches)
        first, rows = list[pa.RecordBatch](), 0
        for batch in source:
            first.append(batch)
            rows += batch.num_rows
            if rows >= SPREAD_ROWS:
                break
        if (rows < SPREAD_ROWS and self._pool is None) or self._cores == 1:
            yield from map(transform, chain(first, source))
            return
        pool, todo = self._workers(), chain(first, source)
        under_way: deque[Future[pa.RecordBatch]] = deque(
            pool.submit(transform, batch) for batch in islice(todo, 2 * self._cores)
        )
        try:
            while under_way:
                yield under_way.popleft().result()
                under_way.extend(pool.submit(transform, batch) for batch in islice(todo, 1))
        finally:
            for future in under_way:
                future.cancel()

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned and not forked: gRPC and SlateDB do not survive a fork.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._cores, mp_context=context, initializer=_follow_parent, initargs=(os.getpid(),)
            )
        return self._pool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _follow_parent(parent: int) -> None:
    """End this worker when its parent is gone: a killed parent closes nothing that a worker waits for."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
