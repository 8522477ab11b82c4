"""The keys of the state are what docs/state.md says, and no two kinds of them overlap."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

from pkm_pipelines.model import keys

PAGE = Path(__file__).resolve().parents[2] / "docs" / "state.md"
PREFIXES = {name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
FUNCTIONS = [
    function for _, function in inspect.getmembers(keys, inspect.isfunction) if function.__module__ == keys.__name__
]


def table() -> list[str]:
    return [line for line in (keys.__doc__ or "").splitlines() if line.startswith("|")]


def test_the_page_shows_the_keys() -> None:
    """`UPDATE_DOCS=1 pytest tests/storage/test_state_keys.py` brings the page up to date."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition("<!-- keys: begin -->\n")
    shown, _, tail = rest.partition("<!-- keys: end -->")
    if os.environ.get("UPDATE_DOCS"):
        shown = "".join(f"{line}\n" for line in table())
        PAGE.write_text(f"{head}<!-- keys: begin -->\n{shown}<!-- keys: end -->{tail}", encoding="utf-8")
    assert shown.splitlines() == table(), "write it with UPDATE_DOCS=1 pytest tests/storage/test_state_keys.py"


def test_every_prefix_is_in_the_table() -> None:
    documented = " ".join(line.split("|")[1] for line in table())
    assert [name for name, prefix in PREFIXES.items() if f"`{prefix}" not in documented] == []


def test_no_prefix_begins_another() -> None:
    values = sorted(PREFIXES.values())
    assert all(value.endswith(":") for value in values)
    assert not [(a, b) for a in values for b in values if a != b and b.startswith(a)]


def test_every_function_makes_a_key_of_one_kind() -> None:
    assert FUNCTIONS
    for function in FUNCTIONS:
        parameters = inspect.signature(function).parameters.values()
        values = [7 if "int" in str(parameter.annotation) else parameter.name for parameter in parameters]
        assert any(function(*values).startswith(prefix) for prefix in PREFIXES.values()), function.__name__


def test_ordinals_sort_as_numbers_do() -> None:
    made = [keys.history("s", ordinal) for ordinal in (0, 9, 10, 99_999, 1_000_000)]
    assert made == sorted(made)
