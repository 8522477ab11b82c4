"""What reaches the terminal and the pipe: exact JSON, and no control sequence of a stranger's note."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.cli.output import (
    ago,
    cell_text,
    clean,
    count,
    duration,
    fail,
    plain,
    print_json,
    print_table,
    say,
    styled,
)


@dataclass(frozen=True)
class Row:
    name: str
    at: dt.datetime


PLUS_TWO = dt.timezone(dt.timedelta(hours=2))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (dt.datetime(2026, 1, 2, 5, 4, 5, 678000, tzinfo=PLUS_TWO), "2026-01-02T03:04:05.678000Z"),
        (dt.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),  # noqa: DTZ001  # as DuckDB gives a TIMESTAMP
        (dt.date(2026, 1, 2), "2026-01-02"),
        (dt.timedelta(minutes=1), 60.0),
        (b"\x00\xff", "AP8="),
        (decimal.Decimal("1.10"), "1.10"),
        (float("nan"), None),
        (float("-inf"), None),
        (Path("/a"), "/a"),
        ({"a": (1, True, None)}, {"a": [1, True, None]}),
        ({1: {2}}, {"1": [2]}),
        (Row("x", dt.datetime(2026, 1, 1, tzinfo=dt.UTC)), {"name": "x", "at": "2026-01-01T00:00:00Z"}),
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    assert plain(value) == expected


def test_the_unknown_is_refused_and_not_guessed() -> None:
    with pytest.raises(TypeError, match="no JSON for object"):
        plain({"a": [object()]})


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=20)
)
def test_json_comes_back_as_it_was_and_holds_no_control_character(value: Any) -> None:
    import contextlib
    import io

    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        print_json(value)
    text = stream.getvalue()
    assert json.loads(text) == value
    assert not any(char != "\n" and (ord(char) < 32 or 127 <= ord(char) < 160) for char in text)


@given(st.text())
def test_nothing_in_a_text_can_steer_a_terminal(text: str) -> None:
    shown = clean(text)
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def test_an_escape_in_a_title_is_no_escape_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07[red]x[/red] \x9b31m :smile:"
    print_table(("title\x1b[2J",), [(evil,), (styled(evil, "bold"),)])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x9b" not in out and "\x07" not in out
    assert out.count("[red]x[/red]") == 2 and ":smile:" in out


def test_a_pipe_gets_whole_cells_and_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("path", "n"), [("x" * 500, 1), (None, 22)], right=("n",))
    out = capsys.readouterr().out
    assert "x" * 500 in out
    assert "\x1b" not in out
    assert all(line == line.rstrip() or line.strip() for line in out.splitlines())


def test_errors_are_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    fail("first\nsecond  third")
    say("and a hint")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: first second third\nand a hint\n"


def test_cells() -> None:
    assert [cell_text(value) for value in (None, True, 0.000123456, 12, "a\nb", [1, "ü"], {"a": None})] == [
        "",
        "true",
        "0.0001235",
        "12",
        "a b",
        '[1, "ü"]',
        '{"a": null}',
    ]
    assert cell_text(dt.datetime(2026, 1, 2, 5, 4, 5, tzinfo=PLUS_TWO)) == "2026-01-02 03:04:05"


def test_words_for_numbers() -> None:
    assert count(1, "search", "searches") == "1 search"
    assert count(1234, "note") == "1,234 notes"
    assert [duration(value) for value in (0.04, 59.94, 125, 12_000)] == ["0.0 s", "59.9 s", "2 min 5 s", "3 h 20 min"]
    now = dt.datetime.now(dt.UTC)
    assert ago(None) == ""
    assert ago(now - dt.timedelta(minutes=2, seconds=5)) == "2 min ago"
    assert ago(now - dt.timedelta(days=3)) == "3 d ago"
