"""Making the next things while the last ones are used: a stream that is read by a thread of its own.

Reading, sorting and writing Parquet each keep one core busy and let others work meanwhile, so a pipeline of them is as
slow as its slowest part and not as their sum. What waits between two parts is bounded.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


class _End:
    """What the thread says last; `error` is what the stream raised, if it did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(things: Iterable[T], depth: int = 2) -> Generator[T]:
    """The same things in the same order, up to `depth` of them made before they are asked for.

    What making them raises is raised here. When this is closed early the thread stops at its next thing.
    """
    ready: queue.Queue[T | _End] = queue.Queue(depth)
    stopped = threading.Event()

    def tell(item: T | _End) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for thing in things:
                if not tell(thing):
                    return
        except BaseException as error:  # noqa: BLE001 # it is raised again where the things are used
            tell(_End(error))
        else:
            tell(_End())

    thread = threading.Thread(target=make, name="read ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if not isinstance(item, _End):
                yield item
                continue
            if item.error is not None:
                raise item.error
            return
    finally:
        stopped.set()
        thread.join()
