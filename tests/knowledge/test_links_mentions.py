"""Unlinked mentions: which names are found where."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkm_pipelines.knowledge.mentions import MentionFinder, Name, mentions, note_names
from pkm_pipelines.model import ids
from pkm_pipelines.model.tables import KNOWLEDGE_GRAPH
from tests.conftest import BUDGETS, budget_name

EXAMPLES = 150 * BUDGETS[budget_name()]


def find(content: str, names: Iterable[str | tuple[str, str]], **arguments: Any) -> list[dict[str, Any]]:
    """Mentions in a note `here` of names, each the name of a note of its own or of the one stated."""
    known = [name if isinstance(name, tuple) else (name, f"id of {name}") for name in names]
    listed = [Name(text, note, f"{note}.md") for text, note in known]
    batch = pa.RecordBatch.from_pylist([{"note_id": "here", "content": content}])
    found = MentionFinder(listed, only=arguments.pop("only", None)).find(batch, **arguments)
    assert found.schema == KNOWLEDGE_GRAPH.arrow
    found.validate(full=True)
    return found.to_pylist()


def written(content: str, names: Iterable[str | tuple[str, str]], **arguments: Any) -> list[str]:
    rows = find(content, names, **arguments)
    assert all(content[row["start"] : row["end"]] == row["raw_target"] for row in rows)
    return [row["raw_target"] for row in rows]


@pytest.mark.parametrize(
    ("content", "names", "expected"),
    [
        ("a Garden here", ["garden"], ["Garden"]),
        ("gardens, pregarden, my_garden, garden2", ["garden"], []),
        ("(garden) *garden* garden's", ["garden"], ["garden"]),
        ("deep work, deep", ["deep work", "deep"], ["deep work", "deep"]),
        ("deep work is deep work", ["work", "deep work"], ["deep work"]),
        ("new york city", ["new york", "york city"], ["new york"]),
        ("a fox", ["fox"], []),  # too short
        ("in 2024", ["2024"], []),  # digits only
        ("on 2024-05-31", ["2024-05-31"], ["2024-05-31"]),
        ("我喜欢花园里的花", ["花园"], ["花园"]),
        ("我喜欢花", ["花"], []),
        ("서울에서 왔다", ["서울"], ["서울"]),
        ("東京Tower", ["東京"], ["東京"]),
        ("Größe GRÖẞE größen", ["größe"], ["Größe"]),
        ("İstanbul", ["i\u0307stanbul"], []),
        ("C++20 and C++ code", ["C++ code"], ["C++ code"]),
        ("", ["garden"], []),
        ("garden", [], []),
    ],
)
def test_names(content: str, names: list[str], expected: list[str]) -> None:
    assert written(content, names) == expected


@pytest.mark.parametrize(
    "marked",
    [
        "---\ntitle: garden\n---\n",
        "`garden`",
        "```\ngarden\n```\n",
        "    garden\n",
        "[[garden]]",
        "[[x|the garden]]",
        "![[garden]]",
        "[garden](x.md)",
        "![garden](x.png)",
        "<b title='garden'>x</b>",
        "<div>garden</div>\n",
        "<!-- garden -->",
        "%%\ngarden\n%%\n",
        "$garden$",
        "#garden",
        "#x/garden",
        "https://garden.org/garden",
        "[[|garden]]",
        "> [!garden]\n> x\n",
        "x[^garden]\n\n[^garden]: y\n",
    ],
)
def test_running_text_only(marked: str) -> None:
    assert written(marked, ["garden"]) == []
    assert written(f"{marked}\n\nin the garden", ["garden"]) == ["garden"]
    assert written(f"{marked}\n\n# Garden\n\n{marked}", ["garden"]) == ["Garden"]


def test_text_between_marked_text() -> None:
    content = "#tag garden #tag **garden** [[x]] https://x.org garden"
    [row] = find(content, ["garden"])
    assert row["start"] == 5
    assert written("#a park #b garden #c", ["garden", "park", "tree"]) == ["park", "garden"]


def test_an_edge() -> None:
    content = "The garden, a Garden."
    [row] = find(content, ["garden"])
    assert {name: value for name, value in row.items() if value is not None} == {
        "edge_id": ids.edge_id("here", "mention", "garden", 0),
        "src": "here",
        "kind": "mention",
        "raw_target": "garden",
        "ordinal": 0,
        "target_key": "garden",
        "status": "resolved",
        "dst": "id of garden",
        "dst_path": "id of garden.md",
        "start": 4,
        "end": 10,
    }


def test_a_name_of_several_notes_is_none() -> None:
    assert written("the garden", [("garden", "one"), ("Garden", "two")]) == []
    assert written("the garden", [("garden", "one"), ("Garden", "one")]) == ["garden"]


def test_a_note_does_not_mention_itself() -> None:
    assert written("the garden", [("garden", "here")]) == []
    assert written("the garden path", [("garden", "here"), ("garden path", "other")]) == ["garden path"]


def test_several_names_of_one_note_are_several_mentions() -> None:
    rows = find("garden and park", [("garden", "one"), ("park", "one")])
    assert [(row["target_key"], row["dst"]) for row in rows] == [("garden", "one"), ("park", "one")]


def test_only_some_names() -> None:
    names = ["garden", "deep work"]
    assert written("garden, deep work", names, only={"deep work"}) == ["deep work"]
    assert written("garden, deep work", names, only=set()) == []


def test_unicode_forms() -> None:
    for name in ("NFC", "NFD"):
        for content in ("NFC", "NFD"):
            text = unicodedata.normalize(content, "ein Café dort")
            assert written(text, [unicodedata.normalize(name, "café")]) == [unicodedata.normalize(content, "Café")]
    assert written("cafe\u0301", ["cafe"]) == []


def test_logseq_properties_are_no_text() -> None:
    assert written("- garden:: x\n- y", ["garden"], flavour="logseq") == []


def test_names_of_a_note() -> None:
    names = note_names("id", "folder/File name.md", "Title", ["Alias"])
    assert list(names) == [Name(text, "id", "folder/File name.md") for text in ("File name", "Title", "Alias")]
    assert [name.text for name in note_names("id", "a.md", None, None)] == ["a"]


def test_a_name_across_windows_of_the_search() -> None:
    for shift in range(-8, 9):
        content = "x " * (32_768 + shift // 2) + "y" * (shift % 2) + " deep garden " + "x " * 100
        assert written(content, ["deep garden"]) == ["deep garden"]


@pytest.mark.timeout(20)
def test_many_overlapping_names_take_bounded_time() -> None:
    batch = pa.RecordBatch.from_pylist([{"note_id": "here", "content": "a" * 100_000}])
    names = [Name("a" * length, f"id {length}", "x.md") for length in range(4, 14)]
    assert mentions(batch, names).num_rows == 0


VOCABULARY = ("deep", "work", "deep work", "work deep work", "garden", "gard", "Deep Work!", "über", "花园", "花园里")


@settings(max_examples=EXAMPLES)
@given(
    st.lists(st.sampled_from([*VOCABULARY, "deepwork", "x", ".", "-", "花", "ÜBER"]), max_size=12),
    st.sampled_from([" ", "", ", ", "\n"]),
    st.sets(st.sampled_from(VOCABULARY)),
    st.randoms(use_true_random=False),
)
def test_against_a_plain_search(parts: list[str], separator: str, names: set[str], random) -> None:
    """The same rule by regular expressions, name after name, on text without any markup; the order is no matter."""
    content = "x " + separator.join(parts)
    shuffled = random.sample(sorted(names), len(names))
    found = {row["target_key"]: (row["start"], row["end"]) for row in find(content, shuffled)}
    assert found == plain_search(content, {name.lower(): name for name in names})


def plain_search(content: str, names: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    hits: list[tuple[int, int, str]] = []
    for key in names:
        word = "[A-Za-züÜ]"
        before, after = ("", "") if key[0] > "\u2e80" else (f"(?<!{word})", f"(?!{word})")
        pattern = re.compile(f"(?={before}({re.escape(key)}){after})", re.IGNORECASE)
        hits += [(match.start(), match.end(1), key) for match in pattern.finditer(content)]
    found: dict[str, tuple[int, int]] = {}
    last = 0
    for start, end, key in sorted(hits, key=lambda hit: (hit[0], -hit[1])):
        if start >= last:
            last = end
            found.setdefault(key, (start, end))
    return found
