"""How text is taken apart for full-text search, the same for the index, the query and the snippet.

ICU's dictionaries (they are inside Lance; nothing is downloaded) find the words of Chinese, Japanese, Korean and
Thai as well as of spaced scripts; words split at punctuation, so `node.js` and `snake_case` are found by their
parts; English stems, because a vault is English or mixed far more often than not, and the stemmer leaves words of
other languages nearly alone. Stop words are in the index, for a phrase may need them; a query leaves them out unless
it has no other words, for in a small vault they would outweigh the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from typing import Any

import lance
from lance.query import BooleanQuery, CombinedFieldsQuery, FullTextQuery, MatchQuery, Occur, PhraseQuery

ANALYSIS: dict[str, Any] = {
    "base_tokenizer": "icu/split",
    "language": "English",
    "stem": True,
    "lower_case": True,
    "ascii_folding": True,
    "remove_stop_words": False,
    "max_token_length": 64,
}
_TELLING: dict[str, Any] = {**ANALYSIS, "remove_stop_words": True}
COLUMNS = ("text", "title", "heading_path")
"""The columns that are searched, where a table has them; a word in the title weighs most."""
WEIGHTS = {"text": 1.0, "title": 2.0, "heading_path": 1.5}
QUERY_CHARACTERS = 2000
"""A longer query is cut: nobody reads what it would find."""
_QUOTED = re.compile(r'"([^"]*)"')
_WORDS = re.compile(r"\w+")


def terms(text: str) -> list[str]:
    """The terms of `text`, as the index holds them."""
    return [token.text for token in lance.tokenize(_clean(text), **ANALYSIS)]


def wanted_terms(query: str) -> set[str]:
    """The terms of what a person typed that tell one text from another: stop words only if there is nothing else."""
    return set(terms(_telling_words(query)))


def text_query(query: str, indexed: list[str], column: str) -> FullTextQuery | None:
    """What a person typed, as a full-text query; None if there is no word in it.

    Any of its words may match, in any of the `indexed` columns (BM25F); a "quoted phrase" must. Nothing else has a
    meaning: operators, brackets and lone quotes are punctuation. Without an index, whole words match `column` alone.
    """
    query = _clean(query)
    if not terms(query):
        return None
    if not indexed:  # Lance then compares words as they are written
        return MatchQuery(f"{query} {query.lower()} {query.title()}", column)
    words = CombinedFieldsQuery(_telling_words(query), indexed, boosts=[WEIGHTS.get(name, 1.0) for name in indexed])
    phrases = [phrase for phrase in _QUOTED.findall(query) if len(terms(phrase)) > 1]
    if not phrases:
        return words
    required = [BooleanQuery([(Occur.SHOULD, PhraseQuery(phrase, name)) for name in indexed]) for phrase in phrases]
    return BooleanQuery([*((Occur.MUST, phrase) for phrase in required), (Occur.SHOULD, words)])


def find_terms(text: str, wanted: Set[str]) -> Iterator[tuple[int, int]]:
    """The spans of `text` that hold one of the terms `wanted`, in order."""
    for match in _WORDS.finditer(text):
        found = [term for term in terms(match[0]) if term in wanted]
        if not found:
            continue
        if match[0].isascii():
            yield match.span()
            continue
        # A run without blanks may hold several words; where folding has changed one, all of the run counts.
        folded = match[0].lower()
        spans = [(at, at + len(term)) for term in found if (at := folded.find(term)) >= 0]
        base = match.start()
        yield from sorted({(base + start, base + end) for start, end in spans} or {match.span()})


def _telling_words(query: str) -> str:
    words = query.split()
    telling = [word for word in words if lance.tokenize(_clean(word), **_TELLING)]
    return " ".join(telling or words)


def _clean(text: str) -> str:
    """`text` without lone surrogates, which cannot be passed on, and not endlessly long."""
    return text[:QUERY_CHARACTERS].encode("utf-8", "replace").decode()
