from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.sources.identity import HEAD_BYTES, UnusableIdError, stated_id


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", None),
        ("id: 3", None),
        ("---\nid: 3\n", None),
        ("---\n---\nid: 3\n---\n", None),
        ("---\nid: 3\n---\n", "3"),
        ("---\nid: 0012\n---", "0012"),
        ("---\nid: 11.02\n---", "11.02"),
        ("---\nid: 2024-01-31\n---", "2024-01-31"),
        ("---\nid: 12:30:45\n---", "12:30:45"),
        ("---\nid: 'a b'\n---", "a b"),
        ('---\n"id": "ü-🗒"\n---', "ü-🗒"),
        ("---\r\ntitle: x\r\nid: crlf\r\n---\r\n", "crlf"),
        ("\ufeff---\nid: marked\n---\n", "marked"),
        ("---\nid: dots\n...\n", "dots"),
        ('---\n{"title": "x", "id": "json"}\n---\n', "json"),
        ("---\nid:\n---\n", None),
        ("---\nid: null\n---\n", None),
        ("---\nnested:\n  id: 3\n---\n", None),
        ("---\nlist: [id, {id: 3}]\nother: |\n  id: 4\n---\n", None),
        ("---\nid: first\nid: second\n---\n", "first"),
        ("---\ntitle: broken: yaml\nid: 3\n---\n", None),
        ("---\n- id: 3\n---\n", None),
        ("---\nID: 3\n---\n", None),
        (" ---\nid: 3\n---\n", None),
        ("---\nid: &anchor 3\n---\n", "3"),
        ("---\n? [complex]\n: {id: 1}\nid: 5\n---\n", "5"),
    ],
)
def test_the_id_that_front_matter_states(content: str, expected: str | None) -> None:
    assert stated_id(content.encode()) == expected


@pytest.mark.parametrize(
    "value",
    [
        "[1]",
        "{a: b}",
        "yes",
        "true",
        "{{date}}",
        '""',
        "'   '",
        "x" * 201,
        '"a\\nb"',
        "!!python/name:os.system x",
        "*a",
    ],
)
def test_ids_that_cannot_be_used(value: str) -> None:
    with pytest.raises(UnusableIdError):
        stated_id(f"---\na: &a 1\nid: {value}\n---\n".encode())


def test_hostile_front_matter_is_cheap() -> None:
    assert stated_id(b"---\nx: " + b"[" * 60_000 + b"\nid: 3\n---\n") is None
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 200))
    assert stated_id(f"---\na0: &a0 x\n{bomb}id: 3\n---\n".encode()) == "3"
    assert stated_id(b"---\n" + b"x: y\n" * HEAD_BYTES + b"id: 3\n---\n") is None
    assert stated_id(b"---\n\xff: 1\nid: 3\n---\n") is None


@given(st.text(alphabet="id: -\n[]{}&*!'\"|>%@`#?,x1\t\r\0", max_size=80))
def test_any_front_matter_states_an_id_or_none(text: str) -> None:
    try:
        found = stated_id(f"---\n{text}\n---\n".encode())
    except UnusableIdError:
        return
    assert found is None or found.isprintable()
