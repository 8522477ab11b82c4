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


def reading_ease(texts: pl.Series, languages: pl.Series) -> pl.Series:
    """Flesch reading ease of plain texts in their languages (ISO 639-1): 0 hard to 100 easy, one number a text.

    Null where the language has no formula here, or the text has under `MINIMUM_WORDS` words.
    """
    import polars as pl

    frame = pl.DataFrame({"text": texts, "language": languages}).with_row_index()
    parts = [
        _ease(frame.filter(pl.col("language") == language), formula)
        for language, formula in _FORMULAS.items()
        if languages.eq(language).any()
    ]
    if not parts:
        return pl.repeat(None, len(frame), dtype=pl.Float64, eager=True)
    return frame.select("index").join(pl.concat(parts), on="index", how="left", maintain_order="left")["ease"]


def _ease(frame: pl.DataFrame, formula: _Formula) -> pl.DataFrame:
    import polars as pl

    text = pl.col("text").str
    silent = text.count_matches(formula.silent) if formula.silent else 0
    counted = frame.select(
        "index",
        words=text.count_matches(_WORDS).cast(pl.Float64),
        sentences=text.count_matches(_SENTENCES).clip(lower_bound=1),
        syllables=text.count_matches(formula.vowels).cast(pl.Float64) - silent,
    ).filter(pl.col("words") >= MINIMUM_WORDS)
    long_sentences = formula.per_sentence * pl.col("words") / pl.col("sentences")
    long_words = formula.per_word * pl.col("syllables") / pl.col("words")
    return counted.select("index", ease=(formula.base - long_sentences - long_words).clip(0.0, 100.0).round(2))
