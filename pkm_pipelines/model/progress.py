"""How long work tells how far it is, and is told to stop.

The library calls a `Progress` from inside its loops and knows nothing of terminals or Dagster: the command
line draws a bar from it, an asset logs it, a run's job record in the state shows it to `pkm status`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from pkm_pipelines.model.errors import CancelledError


@runtime_checkable
class Progress(Protocol):
    """A listener to one run. Stages follow one another; a new stage ends the one before."""

    def stage(self, name: str, total: int | None = None, unit: str = "notes") -> None:
        """A stage begins: `total` is how many `unit` it will handle, None if that is not known (yet).

        Calling it again with the same name corrects the total and keeps what was counted.
        """
        ...

    def advance(self, n: int = 1, **counts: int) -> None:
        """`n` more units of the present stage are done; `counts` adds to named tallies (`added=3, failed=1`)."""
        ...

    def done(self) -> None:
        """The present stage is over."""
        ...

    def note(self, message: str) -> None:
        """Something worth a line of its own, that is no failure."""
        ...

    def check_cancelled(self) -> None:
        """Raise `CancelledError` if the work should stop; called between batches, where stopping is safe."""
        ...


class NullProgress:
    """Listens to nothing and never stops anything."""

    def stage(self, name: str, total: int | None = None, unit: str = "notes") -> None:
        """Ignore a stage."""

    def advance(self, n: int = 1, **counts: int) -> None:
        """Ignore an advance."""

    def done(self) -> None:
        """Ignore an end."""

    def note(self, message: str) -> None:
        """Ignore a note."""

    def check_cancelled(self) -> None:
        """Never stop."""


class CountingProgress:
    """Keeps the present stage and its tallies, for a job record or a test; safe to read from another thread.

    `cancel` is looked at by `check_cancelled`.
    """

    def __init__(self, cancel: threading.Event | None = None) -> None:
        self._lock = threading.Lock()
        self._cancel = cancel or threading.Event()
        self.name = ""
        self.unit = ""
        self.total: int | None = None
        self.count = 0
        self.notes: list[str] = []
        self._tallies: dict[str, int] = {}

    def stage(self, name: str, total: int | None = None, unit: str = "notes") -> None:
        """Begin `name` from zero, or correct its total."""
        with self._lock:
            if name != self.name:
                self.name, self.count, self._tallies = name, 0, {}
            self.unit, self.total = unit, total

    def advance(self, n: int = 1, **counts: int) -> None:
        """Count."""
        with self._lock:
            self.count += n
            for key, value in counts.items():
                self._tallies[key] = self._tallies.get(key, 0) + value

    def done(self) -> None:
        """End the stage; its figures stay readable until the next one."""

    def note(self, message: str) -> None:
        """Keep the message."""
        with self._lock:
            self.notes.append(message)

    def check_cancelled(self) -> None:
        """Raise `CancelledError` once the event is set."""
        if self._cancel.is_set():
            raise CancelledError("cancelled; what was committed is kept, and the next run goes on from there")

    @property
    def tallies(self) -> Mapping[str, int]:
        """A copy of the named tallies of the present stage."""
        with self._lock:
            return dict(self._tallies)
