"""How results are printed: tables for people, one JSON document for programs.

Data goes to stdout; progress, hints and errors go to stderr, so that a pipe carries nothing but data. Titles, paths
and snippets come from notes, which anyone may have written: nothing of them reaches the terminal as a control
sequence or as markup.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# C0 and C1 controls, DEL, and the characters that turn the direction of text around (Unicode UAX #9).
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_C1 = re.compile("[\x7f-\x9f\u2028\u2029]")
# Wide enough that no cell is cut where the output is a file or a pipe.
_PIPE_WIDTH = 10_000
_PARTS = 4096


def console(*, stderr: bool = False, stream: TextIO | None = None) -> Console:
    """A console on stdout, stderr or `stream`: in colour on a terminal unless `NO_COLOR` is set, plain elsewhere."""
    from rich.console import Console

    file = stream if stream is not None else sys.stderr if stderr else sys.stdout
    is_terminal = file.isatty()
    return Console(
        file=file,
        width=None if is_terminal else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not is_terminal,
    )


def say(message: str) -> None:
    """Print a line for people to stderr."""
    console(stderr=True).print(clean(message), soft_wrap=True)


def fail(message: str) -> None:
    """Print `error: …` in red, as one line, to stderr."""
    from rich.text import Text

    line = " ".join(clean(message).split())
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), (line, "red")), soft_wrap=True)


def clean(value: object) -> str:
    """`value` as text without control characters; line breaks and tabs become blanks."""
    text = str(value).replace("\r\n", " ").replace("\n", " ").replace("\t", " ")
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def print_json(value: object) -> None:
    """Print `value` as one JSON document (RFC 8259, UTF-8)."""
    encoder = json.JSONEncoder(ensure_ascii=False, indent=2, allow_nan=False)
    pending: list[str] = []
    for part in encoder.iterencode(plain(value)):
        # JSON allows C1 controls raw; a terminal would obey them.
        pending.append(_C1.sub(lambda found: f"\\u{ord(found.group()):04x}", part))
        if len(pending) >= _PARTS:
            # Piece by piece: a reader that has enough (`| head`) is noticed soon.
            sys.stdout.write("".join(pending))
            pending.clear()
    sys.stdout.write("".join(pending) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """`value` in terms of JSON.

    Times are ISO 8601 in UTC, bytes are base64, decimals are strings, NaN and infinities are null; a dataclass is
    an object of its fields. Raises `TypeError` for anything unknown: better loud than a `repr` in somebody's data.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z") if value.tzinfo else value.isoformat()
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, (bytes, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, (decimal.Decimal, Path)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    raise TypeError(f"no JSON for {type(value).__name__}")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = (), title: str = ""
) -> None:
    """Print a table to stdout; a cell is any value or a rich `Text`, `right` are the columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            Text(clean(column)),
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column in right,
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell_text(cell)) for cell in row))
    console().print(table)


def cell_text(value: object) -> str:
    """A value in a cell: numbers with thin separators, times to the second, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dt.datetime):
        shown = value.astimezone(dt.UTC) if value.tzinfo else value
        return shown.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, (list, tuple, dict)):
        return clean(json.dumps(plain(value), ensure_ascii=False))
    return clean(value)


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 note`, `1,234 notes`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """`0.4 s`, `2 min 5 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def ago(moment: dt.datetime | None) -> str:
    """`12 s ago`, `3 h ago`; empty for None."""
    if moment is None:
        return ""
    seconds = max(0, round((dt.datetime.now(dt.UTC) - moment).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def styled(text: str, style: str) -> Text:
    """Cleaned text in a style, for a cell."""
    from rich.text import Text

    return Text(clean(text), style=style)
