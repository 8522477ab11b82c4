"""Words of scripts that put no blanks between them: Chinese and Japanese.

Chinese is segmented and tagged by jieba (the Rust port, package rjieba), whose dictionary is inside the package.
Japanese needs no dictionary here: names of things are written in kanji and katakana, grammar in hiragana, so a run
of one of the first two is a word. That misses nouns with kana inside (湯呑み) and costs no 50 MB of dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from pkm_pipelines.knowledge.lexicon import stop_words

if TYPE_CHECKING:
    from rjieba import Jieba

Piece = tuple[int, int, str]
"""Start and end within the run, and the normal form."""

LONGEST_RUN = 400
"""Characters of a run without blank or punctuation that are segmented; no sentence is longer."""

_LONGEST_WORD = 10
_KANA = re.compile("[ぁ-ゖァ-ヺ]")
_JAPANESE = re.compile(
    "(?P<kanji>[々〆㐀-䶿一-鿿豈-﫿]+)|(?P<kana>[ァ-ヺー]{2,})|(?P<latin>[^\\W_ぁ-ゖァ-ヺー㐀-鿿]{2,})"
)
_KATAKANA = re.compile("[ァ-ヺ]{2}")
_NOUNS = ("n", "j", "eng")  # jieba's tags: nouns and names of all kinds, abbreviations, Latin words
_VERBAL_NOUNS = ("vn", "an")


@cache
def _jieba() -> Jieba:
    import rjieba

    return rjieba.Jieba()  # an instance of our own: the module's shared one can be taught words by others


def split(run: str, language: str | None) -> Iterator[list[Piece]]:
    """The phrases of a run of characters, each a list of adjacent words; grammar between them is left out.

    A run with kana in it is Japanese whatever `language` says; kanji alone follow `language`.
    """
    run = run[:LONGEST_RUN]
    if language == "ja" or _KANA.search(run):
        yield from _japanese(run)
    else:
        yield from _chinese(run)


def _japanese(run: str) -> Iterator[list[Piece]]:
    stops = stop_words("ja")
    phrase: list[Piece] = []
    for match in _JAPANESE.finditer(run):
        start, end = match.span()
        word = match[0].casefold()
        # One kanji is mostly the stem of a verb, or a part of a word with kana (注ぎ, 淹れ方); in 食パン it is not.
        lone = end - start == 1 and not _KATAKANA.match(run, end)
        if lone or end - start > _LONGEST_WORD or word in stops or word.isnumeric():
            if phrase:
                yield phrase
            phrase = []
            continue
        if phrase and phrase[-1][1] != start:
            yield phrase
            phrase = []
        phrase.append((start, end, word))
    if phrase:
        yield phrase


def _chinese(run: str) -> Iterator[list[Piece]]:
    stops = stop_words("zh")
    phrase: list[Piece] = []
    start = 0
    for word, tag in _jieba().tag(run):
        end = start + len(word)
        noun = tag.startswith(_NOUNS) or tag in _VERBAL_NOUNS
        if noun and word not in stops and len(word) <= _LONGEST_WORD and not word.isnumeric():
            phrase.append((start, end, word.casefold()))
        else:
            yield from _whole(phrase)
            phrase = []
        start = end
    yield from _whole(phrase)


def _whole(phrase: list[Piece]) -> Iterator[list[Piece]]:
    """The phrase, if it is more than a single character."""
    if phrase and phrase[-1][1] - phrase[0][0] > 1:
        yield phrase
