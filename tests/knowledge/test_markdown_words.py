"""Counting words and characters in any script."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.knowledge.words import is_cjk, measure


@pytest.mark.parametrize(
    ("text", "words", "characters"),
    [
        ("", 0, 0),
        ("Hello, world!", 2, 12),
        ("Don't panic, it’s e.g. 1,000.50 well-known", 7, 37),
        ("naïve café’s l’été", 3, 16),
        ("你好，世界", 4, 5),
        ("ひらがなとカタカナー", 10, 10),
        ("日本語とEnglishの混在", 8, 14),
        ("한국어 띄어쓰기 단어", 3, 9),
        ("हिन्दी में लिखा", 3, 13),
        ("Привет, мир", 2, 10),
        ("مرحبا بالعالم", 2, 12),
        ("😀 👩‍💻 - & * _ '", 0, 9),
        ("__init__ snake_case", 2, 18),
        ("a\u3000b\u00a0c\u2003d", 4, 4),
        ("汉字abc汉字", 5, 7),
    ],
)
def test_count(text: str, words: int, characters: int) -> None:
    length = measure(text)
    assert (length.words, length.characters) == (words, characters)


def test_reading_time() -> None:
    assert measure("").reading_seconds == 0
    assert measure("word").reading_seconds == 1
    assert measure("word " * 238).reading_seconds == 60
    assert measure("字" * 500).reading_seconds == 60
    assert measure("word " * 238 + "字" * 500).reading_seconds == 120


@given(st.text())
def test_characters_are_those_that_are_no_white_space(text: str) -> None:
    assert measure(text).characters == sum(not character.isspace() for character in text)


@given(
    st.lists(st.text("abcXYZ019äßжλ", min_size=1, max_size=8)), st.sampled_from([" ", "\n", " - ", "; ", " 😀 ", "，"])
)
def test_words_between_separators(words: list[str], separator: str) -> None:
    assert measure(separator.join(words)).words == len(words)


@given(st.text("abc 019.,'_-\n!?"))
def test_ascii_words_by_a_regular_expression(text: str) -> None:
    """The same rule, written plainly: marks inside a word are taken out, then runs of letters and digits count."""
    assert measure(text).words == len(re.findall(r"[a-z0-9]+", re.sub(r"[.,'_]", "", text)))


def test_every_character_has_one_class() -> None:
    """A letter or number alone is a word; a mark, sign or blank alone is none."""
    words: list[str] = []
    others: list[str] = []
    for character in map(chr, range(0x33480)):  # beyond are private, unassigned and invisible ones
        (words if unicodedata.category(character)[0] in "LN" else others).append(character)
    assert measure(" ".join(words)).words == len(words)
    assert measure(" ".join(words)).cjk == sum(map(is_cjk, words))
    assert measure(" ".join(others)).words == 0
