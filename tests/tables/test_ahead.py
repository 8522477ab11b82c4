"""Streams that a thread makes ahead: the same things, bounded, and no thread left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pkm_pipelines.tables.ahead import ahead


def threads() -> int:
    return sum(thread.name == "read ahead" for thread in threading.enumerate())


def test_the_same_things_in_the_same_order() -> None:
    assert list(ahead(iter(range(1000)))) == list(range(1000))
    assert list(ahead([])) == []
    assert threads() == 0


def test_no_more_than_asked_for_is_made_ahead() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    stream = ahead(numbers(), depth=3)
    assert next(stream) == 0
    deadline = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 5, "the one that was taken, three that wait, and one that is at hand"
    stream.close()
    assert threads() == 0
    assert len(made) == 5


def test_what_goes_wrong_is_raised_where_it_is_used() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("a file is gone")

    stream = ahead(broken())
    assert next(stream) == 1
    with pytest.raises(KeyError, match="a file is gone"):
        next(stream)
    assert threads() == 0


def test_a_user_that_fails_leaves_no_thread() -> None:
    def use() -> None:
        for number in ahead(iter(range(100))):
            if number == 3:
                raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        use()
    assert threads() == 0
