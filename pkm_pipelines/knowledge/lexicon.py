"""What is known of a word in a language: is it grammar or content, what is its stem, how is it cased.

Stop words come from the package stopwordsiso, stems from Snowball (PyStemmer). Both are asked once a word: a note
vault repeats its words, and a dictionary look-up is all that the inner loop of `phrases` can pay for.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from functools import cache
from typing import Final, NamedTuple

STOP: Final = 0
"""Grammar, numbers, identifiers and single letters: ends a phrase."""
CONTENT: Final = 1
"""A word that a phrase can be made of."""
CONNECTOR: Final = 2
"""A stop word that may stand inside a compound: "planches d'épicéa", "Left Hand of Darkness"."""
VERB_CUE: Final = 3
"""A stop word after which a lower-case word is a verb: "to bake", "we baked"."""
DETERMINER: Final = 4
"""A stop word before which a lower-case word is a verb or an adverb, but hardly a noun: "bake the bread"."""
SCRIPT: Final = 5
"""A run of Chinese or Japanese characters, which has to be cut into words first."""

PARTICIPLE: Final = -1
"""Lower case and a form of a verb that may stand before a noun but ends no phrase: "typed edges", not "bread baked"."""
PLURAL: Final = -2
"""Lower case and ends in s: a plural, or a verb. Not the last of a phrase, it is a verb: "skin stays soft"."""
LOWER: Final = 0
CAPITALISED: Final = 1
ACRONYM: Final = 2
"""All capitals, or capitals inside: HTTP, DuckDB, openCypher."""
INITIAL: Final = 3
"""The short form of a given name, "K."; stands inside a name and never at its end."""


class Word(NamedTuple):
    """What is known of one surface form."""

    kind: int
    stem: str
    shape: int


_FALLBACK = "en"  # for a note too short to tell: its English words, names and identifiers are the likely ones
_LONGEST_WORD = 40
_MEMO_WORDS = 100_000

_SNOWBALL = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish",
    "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian",
    "it": "italian", "lt": "lithuanian", "ne": "nepali", "nl": "dutch", "nn": "norwegian", "no": "norwegian",
    "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish",
    "ta": "tamil", "tr": "turkish", "yi": "yiddish",
}  # fmt: skip

# Closed classes of function words that tell the part of speech of their neighbour. They are no stop lists: every one
# of them is a stop word already, and a language without an entry merely has no such hints.
_CONNECTORS = {
    "en": "of",
    "ca": "de d del dels",
    "es": "de del",
    "fr": "de d du des",
    "it": "di d del della dei delle dell",
    "pt": "de do da dos das",
}
_NAME_CONNECTORS = "of de del della di da do dos du van von der den la le zu af av"
_VERB_CUES = {
    "en": "to i you we they he she it who will would can could should must may might shall cannot not never let "
    "don't doesn't didn't can't won't couldn't wouldn't shouldn't let's i'll we'll you'll they'll",
    "es": "yo tú nos se me te no",
    "fr": "je j tu il elle on nous vous ils elles ne n se s me te",
    "it": "io tu noi voi si mi ti non",
    "nl": "ik je jij hij zij ze wij we niet",
    "pt": "eu você nós se me te não",
}
_DETERMINERS = {
    "en": "the a an this these those my your our their every",
    "ca": "el la els les un una",
    "da": "den det en et",
    "es": "el la los las un una",
    "fr": "le la les un une",
    "it": "il lo la gli le un una uno",
    "nl": "de het een",
    "pt": "os um uma",
}

_SCRIPT_RUN = re.compile("[぀-ヿ㐀-䶿一-鿿豈-﫿々〆\U00020000-\U0003134f]")


@cache
def stop_words(language: str) -> frozenset[str]:
    """The stop words of a language, casefolded; empty where the package has none."""
    import stopwordsiso

    if not stopwordsiso.has_lang(language):
        return frozenset()
    return frozenset(word.casefold().replace("’", "'") for word in stopwordsiso.stopwords(language))


class Lexicon:
    """The words of one language. Safe to share between threads."""

    def __init__(self, language: str | None):
        import Stemmer

        self.language = language
        code = language or _FALLBACK
        self.nouns_are_capitalised = code in ("de", "lb")
        self.compounds_by_connector = code in _CONNECTORS and code != "en"
        kin = "no" if code == "nn" else code
        self._kinds: dict[str, int] = dict.fromkeys(stop_words(kin), STOP)
        for kind, table in ((CONNECTOR, _CONNECTORS), (VERB_CUE, _VERB_CUES), (DETERMINER, _DETERMINERS)):
            self._kinds.update(dict.fromkeys(table.get(kin, "").split(), kind))
        if not self.nouns_are_capitalised:  # where capitals make no name, "of" between them makes none
            self._kinds.update((word, CONNECTOR) for word in _NAME_CONNECTORS.split() if self._kinds.get(word) == STOP)
        self._english = code == "en"
        self._stemmer = Stemmer.Stemmer(_SNOWBALL[code], 0) if code in _SNOWBALL else None
        self._lock = threading.Lock()
        self.memo: dict[str, Word] = {}  # for loops that cannot pay for a call

    def __call__(self, surface: str) -> Word:
        """What is known of `surface`, a run of word characters with inner hyphens, apostrophes, dots."""
        word = self.memo.get(surface)
        if word is None:
            with self._lock:
                word = self._look_up(surface)
                if len(self.memo) >= _MEMO_WORDS:
                    self.memo.clear()
                self.memo[surface] = word
        return word

    def stem(self, folded: str) -> str:
        """The stem of a casefolded word; a hyphen joins words that are stemmed each ("no-dig beds", "no dig bed")."""
        if self._stemmer is None:
            return folded.replace("-", " ")
        return " ".join(self._stemmer.stemWords(folded.replace("’", "'").split("-")))

    def names(self, title: str) -> frozenset[str]:
        """The stop words, casefolded, that a short title makes a part of a name: "test" in "Float test"."""
        words = [(word, self(word).kind) for word in title.split()]
        if not 2 <= len(words) <= 3 or all(kind != CONTENT for _, kind in words):
            return frozenset()
        return frozenset(word.casefold() for word, kind in words if kind == STOP and word.isalpha() and len(word) > 3)

    def is_verbal(self, surface: str) -> bool:
        """Whether a single English word is a form of a verb first, and a noun only if the note uses it as one."""
        return self._english and surface.endswith(("ed", "ing")) and len(surface) > 5

    def _look_up(self, surface: str) -> Word:
        folded = unicodedata.normalize("NFC", surface).casefold().replace("’", "'")
        shape = _shape(surface)
        kind = self._kinds.get(folded)
        # "IT" and "US" are names although "it" and "us" are grammar; "A" and "I" are not.
        if kind is not None and not (shape == ACRONYM and len(surface) > 1 and not _shouted(surface)):
            return Word(kind, folded, shape)
        if not surface.isascii() and _SCRIPT_RUN.search(surface):
            return Word(SCRIPT, folded, LOWER)
        if len(surface) == 2 and surface.endswith(".") and surface[0].isupper():
            return Word(CONTENT, folded[:-1], INITIAL)
        letters = sum(map(str.isalpha, surface))
        if (
            letters < 2
            or (surface[0].isdigit() and shape != ACRONYM)  # "3rd", unlike "3D"
            or letters * 2 < len(surface)
            or len(surface) > _LONGEST_WORD
            or "_" in surface
            or "." in surface
            or "'" in folded
        ):
            return Word(STOP, folded, shape)
        if self._english and shape == LOWER:
            if _is_english_adverb(folded):
                return Word(STOP, folded, shape)
            if len(folded) > 4 and folded.endswith("ed") and not folded.endswith("eed"):
                shape = PARTICIPLE
            elif len(folded) > 3 and folded[-1] == "s" and folded[-2] not in "siu":
                shape = PLURAL
        if shape == ACRONYM and surface[-1] == "s" and surface[:-1].isupper():
            folded = folded[:-1]  # "CRDTs": no stemmer knows that plural
        stem = self.stem(folded)
        return Word(CONTENT, stem, shape) if stem.strip() else Word(STOP, folded, shape)


def _shape(surface: str) -> int:
    parts = surface.split("-")
    if all(any(map(str.isupper, part[1:])) for part in parts):
        return ACRONYM
    return CAPITALISED if surface[:1].isupper() else LOWER


def _shouted(surface: str) -> bool:
    """A long word in capitals is emphasis ("NEVER"), not an acronym, unless nobody can say it ("HTTP")."""
    return surface.isupper() and len(surface) > 3 and any(vowel in surface for vowel in "AEIOUY")


def _is_english_adverb(folded: str) -> bool:
    return len(folded) > 5 and folded.endswith("ly") and not folded.endswith(("family", "assembly", "anomaly"))


@cache
def lexicon(language: str | None) -> Lexicon:
    """The shared lexicon of a language; None stands for a text whose language is not known."""
    return Lexicon(language)
