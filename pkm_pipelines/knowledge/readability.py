"""How easily a text reads: Flesch reading ease in the formula of its language.

| language | formula (ASL words per sentence, ASW syllables per word) | source |
|---|---|---|
| en | 206.835 − 1.015 ASL − 84.6 ASW | R. Flesch, 1948 |
| de | 180 − ASL − 58.5 ASW | T. Amstad, 1978 |
| fr | 207 − 1.015 ASL − 73.6 ASW | L. Kandel and A. Moles, 1958 |
| es | 206.84 − 1.02 ASL − 60 ASW | J. Fernández Huerta, 1959 |
| it | 217 − 1.3 ASL − 60 ASW | V. Franchina and R. Vacca, 1986 |
| nl | 206.84 − 0.93 ASL − 77 ASW | W. Douma, 1960 |
| ru | 206.835 − 1.3 ASL − 60.1 ASW | I. Oborneva, 2006 |

Syllables are counted as groups of vowels, less the silent e of English and French; that is within a few points of a
pronouncing dictionary on running text and needs none. Everything is counted by Polars, a column at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import polars as pl

MINIMUM_WORDS = 30
"""Under this many words there is too little to judge, and the score is null."""


class _Formula(NamedTuple):
    base: float
    per_sentence: float
    per_word: float
    vowels: str
    silent: str | None = None


_FORMULAS = {
    "en": _Formula(
        206.835, 1.015, 84.6, r"(?i)[aeiouy]+", r"(?i)[aeiouy][b-df-hjkm-np-tv-xz]+e\b|[aeiouy][b-cf-hj-np-sv-xz]+ed\b"
    ),
    "de": _Formula(180.0, 1.0, 58.5, r"(?i)[aeiouyäöü]+"),
    "fr": _Formula(
        207.0, 1.015, 73.6, r"(?i)[aeiouyàâäéèêëîïôöùûüœ]+", r"(?i)[aeiouyàâéèêîïôùû][b-df-hj-np-tv-xzç]+es?\b"
    ),
    "es": _Formula(206.84, 1.02, 60.0, r"(?i)[aeiouyáéíóúü]+"),
    "it": _Formula(217.0, 1.3, 60.0, r"(?i)[aeiouyàèéìòù]+"),
    "nl": _Formula(206.84, 0.93, 77.0, r"(?i)[aeiouyëïöü]+"),
    "ru": _Formula(206.835, 1.3, 60.1, r"(?i)[аеёиоуыэюя]"),
}

_WORDS = r"\p{L}+"
_SENTENCES = r"\p{L}[^\p{L}.!?…\n]*[.!?…\n]|\p{L}[^\p{L}.!?…\n]*\z"  # a line of a note ends a sentence too

LANGUAGES = tuple(_FORMULAS)
"""The languages that have a formula."""


def reading_ease(text: str = "text", language: str = "language") -> pl.Expr:
    """An expression over columns `text` (plain) and `language` (ISO 639-1): Flesch reading ease, 0 hard to 100 easy.

    Null where the language has no formula here, or the text has under `MINIMUM_WORDS` words.
    """
    import polars as pl

    column = pl.col(text)
    words = column.str.count_matches(_WORDS).cast(pl.Float64)
    sentences = column.str.count_matches(_SENTENCES).clip(lower_bound=1)
    score = pl.lit(None, dtype=pl.Float64)
    for code, formula in _FORMULAS.items():
        # Nulled rows are not searched, so each text is searched once, with the pattern of its language.
        own = pl.when(pl.col(language) == code).then(column)
        syllables = own.str.count_matches(formula.vowels).cast(pl.Float64)
        if formula.silent is not None:
            syllables -= own.str.count_matches(formula.silent)
        ease = formula.base - formula.per_sentence * words / sentences - formula.per_word * syllables / words
        score = pl.coalesce(score, ease)
    return pl.when(words >= MINIMUM_WORDS).then(score.clip(0.0, 100.0).round(2))
