"""The progress of a run: on a terminal a bar with rate and time left, elsewhere a line for each stage."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from pkm_pipelines.cli.output import clean, console, duration
from pkm_pipelines.model.errors import CancelledError
from pkm_pipelines.model.progress import CountingProgress, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class LineProgress(CountingProgress):
    """One line on stderr for each stage that did something, when it ends: for logs, CI and pipes."""

    def __init__(self, out: Console, cancel: threading.Event | None = None) -> None:
        super().__init__(cancel)
        self._started = time.monotonic()
        self._console = out
        self._told = True

    def stage(self, name: str, total: int | None = None, unit: str = "notes") -> None:
        """Begin a stage, and tell about the one before."""
        if name != self.name:
            self.done()
            self._started, self._told = time.monotonic(), False
        super().stage(name, total, unit)

    def note(self, message: str) -> None:
        """Print the note."""
        self._console.print(clean(message))

    def done(self) -> None:
        """Tell about the stage, once."""
        if self._told or not self.count:
            return
        self._told = True
        seconds = time.monotonic() - self._started
        rate = _rate(self.count, seconds)
        line = f"{clean(self.name)}: {self.count:,} {self.unit} in {duration(seconds)}"
        self._console.print(f"{line} ({rate})" if rate else line)


class BarProgress(CountingProgress):
    """A bar a stage: notes or chunks done, how many a second, and the time left."""

    def __init__(self, bars: Bars, cancel: threading.Event | None = None) -> None:
        super().__init__(cancel)
        self._bars = bars
        # Until the first stage: importing what a run needs takes some seconds.
        self._task: TaskID | None = bars.add_task("starting", total=None, unit="", rate="")
        self._started = time.monotonic()

    def stage(self, name: str, total: int | None = None, unit: str = "notes") -> None:
        """Begin a bar, or correct its total."""
        if name != self.name:
            self.done()
            self._started = time.monotonic()
            self._task = self._bars.add_task(clean(name), total=total, unit=unit, rate="")
        elif self._task is not None:
            self._bars.update(self._task, total=total, unit=unit)
        super().stage(name, total, unit)

    def advance(self, n: int = 1, **counts: int) -> None:
        """Move the bar."""
        super().advance(n, **counts)
        if self._task is not None:
            rate = _rate(self.count, time.monotonic() - self._started)
            self._bars.update(self._task, advance=n, rate=rate)

    def note(self, message: str) -> None:
        """Print the note above the bars."""
        self._bars.console.print(clean(message))

    def done(self) -> None:
        """Fill the bar; one that never moved goes away."""
        if self._task is None:
            return
        if self.count:
            self._bars.update(self._task, total=self.count, completed=self.count)
            self._bars.stop_task(self._task)
        else:
            self._bars.remove_task(self._task)
        self._task = None


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:,.0f}/s" if seconds > 0.05 and count else ""


@contextmanager
def shown_progress() -> Generator[Progress]:
    """A progress that is shown on stderr.

    The first Ctrl-C (or SIGTERM) asks the work to stop where stopping is safe, the second stops it at once. Work that
    fails after such a word, in whatever way, ends this block with `CancelledError`.
    """
    with _cancel_on_interrupt() as cancel, _own_stderr() as stream:
        out = console(stream=stream)
        if not out.is_terminal:
            lines = LineProgress(out, cancel)
            yield lines
            lines.done()
            return
        with _bars(out) as bars:
            bar = BarProgress(bars, cancel)
            yield bar
            bar.done()


@contextmanager
def _own_stderr() -> Generator[TextIO]:
    """Standard error by a descriptor of our own: while a step runs, Dagster turns 1 and 2 to the files of its logs."""
    try:
        descriptor = os.dup(sys.stderr.fileno())
    except OSError:
        # No file behind it, as under a test's capture.
        yield sys.stderr
        return
    with os.fdopen(descriptor, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1) as stream:
        yield stream


def _bars(out: Console) -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False, style="dim"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=out,
        # What others print meanwhile is theirs to place.
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextmanager
def _cancel_on_interrupt() -> Generator[threading.Event]:
    cancel = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may handle signals; another one's caller does.
        yield cancel
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if cancel.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        cancel.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield cancel
    except BaseException as error:
        # Dagster has a handler of its own while a run is under way, and a name of its own for the interrupt.
        if cancel.is_set() or type(error).__name__ == "DagsterExecutionInterruptedError":
            raise CancelledError(
                "interrupted; what was committed is kept, and the next run goes on from there"
            ) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
