"""What a hit shows: the words in view, no markup, and what was written where only the markup has the words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.knowledge.markdown import parse_note
from pkm_pipelines.query.snippet import SNIPPET_CHARACTERS, snippet

FILLER = "Nothing of this sentence matters to anybody who looks for something. "
DOLLAR = "\ufdd0"


def shown(text: str, query: str) -> str:
    found = snippet(text, query)
    assert len(found) <= SNIPPET_CHARACTERS + 2
    assert "\n" not in found
    as_read = parse_note("\n" + text.replace("$", DOLLAR), "").text.replace(DOLLAR, "$")
    assert any(found.strip("…") in " ".join(one.split()) for one in (text, as_read))
    return found


@pytest.mark.parametrize("position", [0, 1, 7, 30, 60])
def test_a_snippet_has_the_words_in_view(position: int) -> None:
    text = FILLER * position + "The zebras run over\nthe plain. " + FILLER * (60 - position)
    found = shown(text, "zebra running")
    assert "zebras run over the plain" in found
    assert found.startswith("…") == (position > 0)
    assert found.endswith("…") == (position < 60)


def test_a_snippet_prefers_where_most_words_stand() -> None:
    text = f"zebra {FILLER * 10} zebra plain {FILLER * 10} zebra {FILLER * 10}"
    assert "zebra plain" in shown(text, "the zebra on the plain")
    assert "反向传播" in shown(
        "这是一个很长的句子。" * 60 + "神经网络用反向传播训练。" + "这是一个很长的句子。" * 60, "反向传播"
    )
    assert shown("short text", "zebra") == "short text"
    assert shown(FILLER * 20, "zebra").startswith("Nothing of this")


@given(st.text(st.characters(codec="utf-8", exclude_characters=DOLLAR), max_size=600), st.text(max_size=20))
def test_a_snippet_of_anything(text: str, query: str) -> None:
    shown(text, query)


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        (
            "See **[[Agnes|the starter]]**, #bread and [this](http://x.y).",
            "starter",
            "See the starter, #bread and this.",
        ),
        ("| Loaf | Flour |\n|---|---:|\n| [[Rye\\|rye]] | dark |", "flour", "Loaf Flour rye dark"),
        ("- [ ] feed %%or not%% the jar\n- wait ^block", "jar", "feed the jar wait"),
        ("Count them:\n\n```python\nlen(loaves)\n```", "loaves", "Count them: ```python len(loaves) ```"),
        ("Read [this](https://example.org/levain).", "levain", "Read [this](https://example.org/levain)."),
        ("It is **$I$-confluent** for $5 or $$x$$.", "confluent", "It is $I$-confluent for $5 or $$x$$."),
        ("%% nothing but a comment %%", "bread", "%% nothing but a comment %%"),
        ("---\nloaf: 1\n---\nA rule, not front matter.", "loaf", "loaf: 1 A rule, not front matter."),
    ],
)
def test_a_snippet_is_what_a_reader_sees_unless_the_words_are_in_the_markup(
    text: str, query: str, expected: str
) -> None:
    assert shown(text, query) == expected


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Staling", "The loaf goes hard."),
        ("Bread > Staling", "The loaf goes hard."),
        ("Bread", "Staling The loaf goes hard."),
        ("", "Staling The loaf goes hard."),
    ],
)
def test_a_heading_that_is_shown_beside_it_is_not_repeated(heading: str, expected: str) -> None:
    assert snippet("## Staling\nThe loaf goes hard.", "staling", heading) == expected
    assert snippet("## Staling\n", "staling", heading) == "Staling"
