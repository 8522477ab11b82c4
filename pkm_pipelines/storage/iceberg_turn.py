"""Turns: writers of one table on one host that get in each other's way let each other finish.

Commits are optimistic: who comes second plans again on what the first has made. Where writers never pause, one whose
plans take longer than those of its rivals could lose for ever, and what all of them plan in vain is most of the work.
So a writer asks the catalog only in its turn, which is a lock between the processes of one user on one host; and one
that was too late plans again *within* its turn, while those that wait for theirs cannot come first. A write is thus
planned twice at most, however many there are. The first plan is made without a lock: a large write keeps no small one
waiting but in its last moment.

It is a courtesy and nothing depends on it. A turn that cannot be had (writers on other hosts, a process that was
stopped in its turn, no runtime folder) is gone without, and the catalog decides as ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from types import TracebackType
from typing import Self

from pkm_pipelines.model.errors import StateUnavailableError
from pkm_pipelines.storage.runtime_dir import default_runtime_dir, hold, make_private

WAIT_SECONDS = 30.0
_THREAD = threading.local()


class Turn:
    """A writer's turn at one table, once it has been taken; it ends with the `with` block."""

    def __init__(self, catalog_url: str, table: str) -> None:
        self._name = hashlib.sha256(f"{catalog_url}\0{table}".encode()).hexdigest()[:16]
        self._lock = contextlib.ExitStack()
        self._was_asked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    @property
    def is_taken(self) -> bool:
        """Whether this thread has a turn, at this table or another."""
        return getattr(_THREAD, "has_turn", False)

    def take(self) -> None:
        """Wait for it, if this thread does not have a turn already: two that wait for each other's would wait long."""
        if self._was_asked or self.is_taken:
            return
        self._was_asked = True
        folder = default_runtime_dir()
        try:
            make_private(folder)
            is_held = self._lock.enter_context(hold(folder / f"{self._name}.turn", WAIT_SECONDS))
        except (OSError, StateUnavailableError):
            return
        if is_held:
            _THREAD.has_turn = True
            self._lock.callback(_end_turn)


def _end_turn() -> None:
    _THREAD.has_turn = False
