"""Which language a text is written in, so that its words can be told from its grammar.

Naive Bayes over byte n-grams, from the package py3langid with its model inside (M. Lui and T. Baldwin, "langid.py:
an off-the-shelf language identification tool", ACL 2012 demo; A. Barbaresi's retrained fork). Nothing is
downloaded. The measurements behind the choice are in docs/decisions/0006-concepts.md.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SAMPLE_CHARACTERS = 480
"""How much of a text is looked at. Past this, the answer changes for hardly a note and the time grows."""

MINIMUM_CONFIDENCE = 0.35
"""Below this share of the probability the answer is None: a wrong language costs more than none."""

_NOT_A_LANGUAGE = "zxx"  # the model's class for numbers, markup and identifiers


_LOADING = threading.Lock()


def preload() -> None:
    """Begin to load the model on another thread: most of it is decompression, which lets Python go on meanwhile."""
    threading.Thread(target=_identifier, name="language-model", daemon=True).start()


def _identifier() -> LanguageIdentifier:
    with _LOADING:
        return _load()


@cache
def _load() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # ISO 639-1 has two letters; the model's rarer languages have three and would only take votes from their kin.
    identifier.set_languages([label for label in identifier.labels if len(label) == 2] + [_NOT_A_LANGUAGE])
    return identifier


def _sample(text: str) -> str:
    """The start, middle and end of a long text, so that a foreign motto at its top does not decide."""
    if len(text) <= SAMPLE_CHARACTERS:
        return text
    third = SAMPLE_CHARACTERS // 3
    middle = (len(text) - third) // 2
    return f"{text[:third]} {text[middle : middle + third]} {text[-third:]}"


def detect(text: str) -> str | None:
    """The ISO 639-1 code of the language that most of `text` is in, or None where it cannot be told.

    Takes plain text (markup and code already removed). Too little text, numbers and identifiers give None. Chinese is
    `zh` in either script; Norwegian is `no`, or `nn` for Nynorsk.
    """
    sample = _sample(text)
    if not any(map(str.isalpha, sample)):
        return None
    # A lone surrogate cannot be encoded; notes read as UTF-8 hold none, but this function takes any string.
    language, confidence = _identifier().classify(sample.encode("utf-8", errors="replace"))
    return None if language == _NOT_A_LANGUAGE or confidence < MINIMUM_CONFIDENCE else language
