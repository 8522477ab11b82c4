"""What the loops of the library may rely on when they report."""

import threading

import pytest

from pkm_pipelines.model.errors import CancelledError
from pkm_pipelines.model.progress import CountingProgress, NullProgress, Progress


@pytest.mark.parametrize("kind", [NullProgress, CountingProgress])
def test_is_a_progress(kind: type) -> None:
    assert isinstance(kind(), Progress)


def test_counts_a_stage_and_starts_the_next_from_zero() -> None:
    progress = CountingProgress()
    progress.stage("parse", 10)
    progress.advance(3, added=2)
    progress.advance(1, added=1, failed=1)
    assert (progress.name, progress.count, progress.total, progress.tallies) == (
        "parse",
        4,
        10,
        {"added": 3, "failed": 1},
    )
    progress.stage("parse", 12)
    assert (progress.count, progress.total) == (4, 12)
    progress.stage("embed", None, "chunks")
    assert (progress.count, progress.total, progress.unit, progress.tallies) == (0, None, "chunks", {})


def test_stops_when_asked() -> None:
    cancel = threading.Event()
    progress = CountingProgress(cancel)
    progress.check_cancelled()
    cancel.set()
    with pytest.raises(CancelledError, match="next run goes on"):
        progress.check_cancelled()
