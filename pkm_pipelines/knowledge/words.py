"""How long a text is: words, characters and reading time, in any script.

Words follow the default word boundaries of Unicode (UAX #29) closely enough for a count: letters,
digits and their combining marks make words, and an apostrophe, full stop or comma inside one, with no
blank beside it, does not end it. Where a script writes no blanks, UAX #29 leaves the matter to a
dictionary; here each Chinese or Japanese character counts as one word, which is how editors and
publishers count them.

The count is a few passes in C: an error handler of the ASCII codec, called once a run of characters
beyond ASCII, puts bytes of their class in their place, and what is left is to count where words begin.
"""

from __future__ import annotations

import codecs
import math
import unicodedata
from typing import NamedTuple

import numpy as np

WORDS_PER_MINUTE = 238
"""Silent reading of English prose (Brysbaert 2019, doi:10.1016/j.jml.2019.104047)."""
CJK_CHARACTERS_PER_MINUTE = 500
"""Reading of Chinese and Japanese, in characters (the rate Medium uses for its reading times)."""

_CJK_RANGES = (
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),  # iteration mark, closing mark, zero
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3031, 0x3035),  # kana repeat marks
    (0x3041, 0x30FF),  # Hiragana, Katakana (its middle dot is sorted out by category)
    (0x3105, 0x312F),  # Bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0xFF66, 0xFF9F),  # halfwidth Katakana
    (0x1AFF0, 0x1B16F),  # Kana supplement
    (0x20000, 0x3FFFF),  # Han, extensions B and later
)
_WHITE_SPACE = b" \n\t\r\v\f\x1c\x1d\x1e\x1f\x84"
"""The bytes that str.isspace() calls white space, and what stands in for such characters beyond ASCII."""


def is_cjk(character: str) -> bool:
    """Whether a character is a Chinese or Japanese one that counts as a word of its own."""
    code = ord(character)
    if code < 0x2E80 or not any(low <= code <= high for low, high in _CJK_RANGES):
        return False
    return unicodedata.category(character)[0] in "LN"


_LETTER, _DIGIT, _CJK, _BREAK, _SPACE, _NOTHING = b"\x80", b"\x81", b"\x83\x82\x83", b"\x83", b"\x84", b""


class _StandIns(dict[str, bytes]):
    """What stands in for a character beyond ASCII while words are counted."""

    def __missing__(self, character: str) -> bytes:
        category = unicodedata.category(character)
        if is_cjk(character):
            stand_in = _CJK
        elif category == "Nd":
            stand_in = _DIGIT
        elif category[0] in "LN":
            stand_in = _LETTER
        elif category[0] == "M" or category == "Cf" or character in "\u2019\u00b7":
            stand_in = _NOTHING  # marks, joiners and apostrophes belong to the word around them
        else:
            stand_in = _SPACE if character.isspace() else _BREAK
        self[character] = stand_in
        return stand_in


_stand_ins = _StandIns()


def _replace(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):  # the handler is ours: nothing decodes with it
        raise error
    run = error.object[error.start : error.end]
    return b"".join([_stand_ins[character] for character in run]), error.end


_HANDLER = "pkm-stand-ins"
codecs.register_error(_HANDLER, _replace)


def _class_table() -> bytes:
    """1 for what words are made of, 0 for what is between them."""
    word = {*_LETTER, *_DIGIT, _CJK[1]}
    return bytes(code in word or (code < 128 and chr(code).isalnum()) for code in range(256))


_CLASSES = _class_table()
_BLANKS = bytes(code in _WHITE_SPACE for code in range(256))
_INSIDE_WORDS = b"'._,"


class Length(NamedTuple):
    """How long a text is. Of its `words`, `cjk` are Chinese or Japanese characters."""

    words: int
    characters: int
    cjk: int

    @property
    def reading_seconds(self) -> int:
        """Time to read the text silently, in seconds, rounded up."""
        minutes = (self.words - self.cjk) / WORDS_PER_MINUTE + self.cjk / CJK_CHARACTERS_PER_MINUTE
        return math.ceil(60 * minutes)


def measure(text: str) -> Length:
    """Count the words of a plain text, and its characters (code points other than white space)."""
    encoded = text.encode("ascii", _HANDLER)
    blanks = int(np.count_nonzero(np.frombuffer(encoded.translate(_BLANKS), dtype=np.bool_)))
    classes = encoded.translate(_CLASSES, _INSIDE_WORDS)
    flags = np.frombuffer(classes, dtype=np.int8)
    words = int(np.count_nonzero(flags[1:] > flags[:-1])) + classes.startswith(b"\x01")
    return Length(words, len(text) - blanks, encoded.count(_CJK[1:2]))
