"""Progress on a terminal and in a log, and the word to stop."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from pkm_pipelines.cli.output import console
from pkm_pipelines.cli.progress import BarProgress, LineProgress, shown_progress
from pkm_pipelines.model.errors import CancelledError, StoreError
from pkm_pipelines.model.progress import Progress


def work(progress: Progress) -> None:
    progress.stage("vault: notes", None, "notes")
    progress.stage("vault: notes", 3, "notes")
    progress.advance(2, added=2)
    progress.note("[b]odd\x1b[2J[/b]")
    progress.advance(1)
    progress.done()
    progress.stage("media", 0, "files")
    progress.done()
    progress.stage("embed", 1200, "chunks")
    progress.advance(1200)


def test_a_log_gets_a_line_for_each_stage_that_did_something(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress(console(stderr=True))
    work(progress)
    progress.done()
    progress.done()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "[b]odd\N{REPLACEMENT CHARACTER}[2J[/b]"
    assert lines[1].startswith("vault: notes: 3 notes in 0.0 s")
    assert lines[2].startswith("embed: 1,200 chunks in 0.0 s")
    assert len(lines) == 3


def test_a_terminal_gets_bars() -> None:
    bars = Bars(console=Console(file=io.StringIO(), force_terminal=True), auto_refresh=False)
    progress = BarProgress(bars)
    work(progress)
    progress.done()
    assert [(task.description, task.completed, task.total, task.fields["unit"]) for task in bars.tasks] == [
        ("vault: notes", 3, 3, "notes"),
        ("embed", 1200, 1200, "chunks"),
    ]


def test_a_bar_shows_rate_and_time_left() -> None:
    from pkm_pipelines.cli import progress as module

    stream = io.StringIO()
    bars = module._bars(Console(file=stream, force_terminal=True, width=120))
    with bars:
        progress = BarProgress(bars)
        progress.stage("embed", 100, "chunks")
        progress._started -= 2
        progress.advance(50)
    assert "50/100" in stream.getvalue()
    assert "chunks" in stream.getvalue() and "25/s" in stream.getvalue()


def test_progress_is_seen_while_somebody_has_turned_stderr_to_a_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As Dagster does around every step."""
    with shown_progress() as progress:
        before = os.dup(2)
        with (tmp_path / "captured").open("wb") as file:
            os.dup2(file.fileno(), 2)
            progress.stage("embed", 2, "chunks")
            progress.advance(2)
            progress.done()
            os.dup2(before, 2)
            os.close(before)
    assert "embed: 2 chunks" in capfd.readouterr().err
    assert (tmp_path / "captured").read_bytes() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_word_to_stop_is_heard_between_batches(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(CancelledError, match="what was committed is kept"), shown_progress() as progress:
        progress.check_cancelled()
        os.kill(os.getpid(), number)
        progress.check_cancelled()
    assert signal.getsignal(number) is before


def test_a_failure_after_the_word_is_an_interruption_whatever_it_says() -> None:
    with pytest.raises(CancelledError), shown_progress():
        os.kill(os.getpid(), signal.SIGINT)
        raise StoreError("the run was interrupted")


def test_a_second_interrupt_stops_at_once() -> None:
    with pytest.raises(CancelledError) as error, shown_progress():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")
    assert isinstance(error.value.__cause__, KeyboardInterrupt)


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(StoreError, match="full"), shown_progress():
        raise StoreError("the disk is full")
