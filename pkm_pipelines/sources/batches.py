"""Cutting a stream of changes into batches of bounded size, each with exactly the state writes of its changes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator

from pkm_pipelines.model.records import MediaChange, NoteChange, Problem, SourceBatch
from pkm_pipelines.sources import oddities
from pkm_pipelines.sources.overlay import Overlay

# State writes that come without a change (a file that was only touched) are cheap, but not free to hold.
_WRITES_PER_CHANGE = 8

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_FIRST_US = (dt.datetime.min.replace(tzinfo=dt.UTC) - _EPOCH) // dt.timedelta(microseconds=1)
_LAST_US = (dt.datetime.max.replace(tzinfo=dt.UTC) - _EPOCH) // dt.timedelta(microseconds=1)


def to_datetime(us: int) -> dt.datetime:
    """Microseconds since the epoch as a UTC time, clamped to the years 1 to 9999."""
    return _EPOCH + dt.timedelta(microseconds=min(max(us, _FIRST_US), _LAST_US))


def to_us(time: dt.datetime) -> int:
    """A time as microseconds since the epoch."""
    return (time - _EPOCH) // dt.timedelta(microseconds=1)


class Batcher:
    """Collects changes until a batch is full. A single change over `max_bytes` gets a batch of its own.

    Without an overlay its batches write nothing to the state.
    """

    def __init__(
        self, source: str, overlay: Overlay | None, *, max_changes: int, max_bytes: int, total: int | None = None
    ) -> None:
        self.source = source
        self.overlay = overlay
        self.total = total
        self.done = 0
        self._max_changes = max_changes
        self.max_bytes = max_bytes
        self._bytes = 0
        self._notes: list[NoteChange] = []
        self._media: list[MediaChange] = []
        self._problems: list[Problem] = []
        self._resolved: dict[str, None] = {}

    def room_for(self, size: int) -> Iterator[SourceBatch]:
        """Yield what there is if a change with `size` bytes of content has no room beside it."""
        count = len(self._notes) + len(self._media)
        if (
            count >= self._max_changes
            or (count and self._bytes + size > self.max_bytes)
            or max(len(self.overlay or ()), len(self._problems)) >= self._max_changes * _WRITES_PER_CHANGE
        ):
            yield from self.flush()

    def add(self, change: NoteChange | MediaChange) -> None:
        """Take a change in."""
        if isinstance(change, NoteChange):
            self._notes.append(change)
            self._bytes += len(change.content or b"")
        else:
            self._media.append(change)

    def problems(self, path: str, codes: Iterable[tuple[str, object]]) -> tuple[Problem, ...]:
        """The problems of a path, from codes and their details."""
        return tuple(Problem(self.source, path, code, oddities.message(code, detail)) for code, detail in codes)

    def tell(self, path: str, before: Iterable[str], problems: Iterable[Problem]) -> None:
        """Take in what is odd about `path` now, if it is not what `before` was."""
        problems = tuple(problems)
        before = tuple(before)
        if tuple(problem.code for problem in problems) != before:
            if before:
                self.resolve(path)
            self._problems.extend(problems)

    def resolve(self, path: str) -> None:
        """What was odd about `path` is over; problems of this batch come after that."""
        self._problems = [problem for problem in self._problems if problem.path != path]
        self._resolved[path] = None

    def flush(self) -> Iterator[SourceBatch]:
        """Yield what there is, if anything, and go on once its mutations are applied."""
        changes = tuple(self._notes) if self._notes else tuple(self._media)
        if not (changes or (self.overlay and self.overlay.has_writes) or self._problems or self._resolved):
            return
        batch = SourceBatch(
            changes=changes,
            mutations=self.overlay.take() if self.overlay else (),
            problems=tuple(self._problems),
            resolved_problems=tuple(self._resolved),
            done=self.done,
            total=self.total,
        )
        self._notes, self._media, self._problems, self._resolved, self._bytes = [], [], [], {}, 0
        yield batch
        if self.overlay:
            self.overlay.confirm()
