"""What was read last of files that never change, up to a bound, shared by all threads of the process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class RecentlyUsed(Generic[T]):
    """The values used last by the path of the file they came from, as long as they weigh no more than `capacity`."""

    def __init__(self, capacity: int, weigh: Callable[[T], int]) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._held = 0
        self._lock = threading.Lock()
        self._values: OrderedDict[str, T] = OrderedDict()

    def get(self, path: str, read: Callable[[], T]) -> T:
        """The value of `path`, by `read` if it is not held; the newest is held whatever it weighs."""
        with self._lock:
            if path in self._values:
                self._values.move_to_end(path)
                return self._values[path]
        value = read()
        with self._lock:
            if path not in self._values:
                self._values[path] = value
                self._held += self._weigh(value)
            while self._held > self._capacity and len(self._values) > 1:
                _, dropped = self._values.popitem(last=False)
                self._held -= self._weigh(dropped)
        return value
