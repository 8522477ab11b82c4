"""Cuts a note's Markdown into phrases: runs of content words that could be the name of something.

A phrase ends at a stop word, a number, a line or any punctuation (S. Rose et al., "Automatic keyword extraction from
individual documents", 2010, calls this RAKE's candidate step). What is no prose (front matter, code, URLs, link
destinations, markup) is never looked at. Offsets are characters of the content, so a phrase can be shown in its place.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from pkm_pipelines.knowledge import script
from pkm_pipelines.knowledge.lexicon import (
    CONNECTOR,
    CONTENT,
    DETERMINER,
    INITIAL,
    LOWER,
    PARTICIPLE,
    PLURAL,
    SCRIPT,
    STOP,
    VERB_CUE,
    Lexicon,
)

LONGEST_CONTENT = 50_000
"""Characters of a note that are read. What a book-long note is about stands in its first 50,000."""


class Token(NamedTuple):
    """A content word where it stands."""

    start: int
    end: int
    stem: str
    shape: int


class Phrase(NamedTuple):
    """A run of content words.

    `connector` is how many tokens stand before a connector inside it, or 0. Of a `named` phrase the parts are no
    phrases: somebody has said where it begins and ends.
    """

    tokens: tuple[Token, ...]
    heading: bool
    linked: bool
    opens_sentence: bool
    connector: int = 0
    named: bool = False


_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n.*?^(?:---|\.\.\.)[ \t\r]*$", re.DOTALL | re.MULTILINE)

# Every branch starts with a literal character and is bounded or runs to the end of what it consumes, so the time is
# linear in the content whatever it holds.
_NOT_PROSE = re.compile(
    r"""
    ```(?<![^\n\ \t>]```) .*? (?: \n[\ \t>]*```[^\n]* | \Z )   # fenced code, up to its fence or the end
  | ~~~(?<![^\n\ \t>]~~~) .*? (?: \n[\ \t>]*~~~[^\n]* | \Z )
  | `[^`\n]+` | ``[^\n]{1,500}?``                               # inline code
  | <!-- .*? (?: --> | \Z )
  | <[A-Za-z/!][^<>\n]{0,500}>                                  # HTML
  | %% .*? (?: %% | \Z )                                        # Obsidian's comments
  | \$\$ .*? (?: \$\$ | \Z )                                    # mathematics
  | \$(?=\S)[^$\n]{0,300}(?<=\S)\$(?!\d)
  | \{\{[^{}\n]{0,300}\}\}                                      # templates
  | https?://[^\s<>\])]{1,2000} | www\.[^\s<>\])]{1,2000}
  | @[\w.+-]{1,200}                                             # the part of an address after '@'
  | !\[\[[^\[\]\n]{0,500}\]\]                                   # embeds
  | \]\([^()\n]{0,1000}(?:\([^()\n]{0,200}\)[^()\n]{0,200})?\)  # destination of a Markdown link
  | \[![\w-]{1,50}\][+-]?                                       # type of a callout
  | \[\^[^\]\n]{1,100}\]:? | \^[A-Za-z0-9-]{1,100}              # footnotes and block ids
  | \#[\w/-]{1,200}                                             # tags, subpaths of links
  | &\#?\w{1,20};
    """,
    re.VERBOSE | re.DOTALL,
)
_LINK_TARGET = re.compile(r"\[\[(?:[^\[\]|\n]{0,500}\||[^\[\]|\n]{0,500}/)")
# Python's \w leaves out combining marks, without which Hindi, Arabic with vowels or decomposed Latin fall apart.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0900-\u0963\u0971-\u0df3\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
    "\u0eb1-\u0ebc\u0ec8-\u0ece\u0f71-\u0f84\u102b-\u103e\u1056-\u1059\u17b4-\u17d3\u200c\u200d"
)
_WORD = rf"(?:(?<![\w.])[^\W\d_]\.(?=\ [^\W_])|[\w{_MARKS}]+(?:[-'’.](?!s\b)[\w{_MARKS}]+)*)"
_ANY_WORD = re.compile(_WORD)
_LONGEST_NAME = 100  # characters
_RUN = re.compile(rf"{_WORD}(?: {_WORD})*")
_EMPHASIS = re.compile(r"_(?<!\w_)_*|_+(?!\w)")
_ELISION = re.compile(r"\b(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|all|dall|dell|nell|sull|un|quest)(?=['’]\w)['’]", re.I)
_SENTENCE_END = re.compile(r"[.!?:;。！？]|\n")


def prose(content: str) -> str:
    """`content` with everything that is no prose blanked out by as many line feeds: offsets stay the same."""
    text = content[:LONGEST_CONTENT]
    if text.startswith(("---", "\ufeff---")):
        text = _FRONT_MATTER.sub(_blank, text, count=1)
    text = _NOT_PROSE.sub(_blank, text)
    if "_" in text:
        text = _EMPHASIS.sub(_blank, text)  # what is left joins the parts of identifiers
    if "[[" in text:
        text = _LINK_TARGET.sub(_keep_brackets, text)
    return text


def _blank(match: re.Match[str]) -> str:
    return "\n" * (match.end() - match.start())


def _keep_brackets(match: re.Match[str]) -> str:
    # "[[folder/Target" and "[[Target|": what is shown follows, and still stands right behind brackets.
    return "\n" * (match.end() - match.start() - 2) + "[["


def find_phrases(content: str, lexicon: Lexicon, title: str = "") -> list[Phrase]:
    """All phrases of a note in the order in which they stand, compounds after their parts.

    A stop word that the title makes a part of a name is no stop word in this note.
    """
    text = prose(content)
    if lexicon.compounds_by_connector and ("'" in text or "’" in text):
        text = _ELISION.sub(lambda match: match[0][:-1] + " ", text)
    return _Reader(text, lexicon, lexicon.names(title)).read()


@lru_cache(maxsize=1024)
def _gap(between: str) -> tuple[bool, bool, bool, bool]:
    """What stands between two words and is more than a blank: a new line, a heading's mark, brackets, a full stop."""
    line = between.rfind("\n")
    ends = not between or _SENTENCE_END.search(between) is not None
    return line >= 0, between.startswith("#", line + 1), between.endswith("[["), ends


class _Reader:
    """One pass over the words of a text."""

    def __init__(self, text: str, lexicon: Lexicon, names: frozenset[str]):
        self.text = text
        self.lexicon = lexicon
        self.names = names
        self.verbs_are_cued = not lexicon.nouns_are_capitalised
        self.never_last = (PARTICIPLE, INITIAL, LOWER) if lexicon.nouns_are_capitalised else (PARTICIPLE, INITIAL)
        self.named = 0  # end of the name read last
        self.phrases: list[Phrase] = []
        self.tokens: list[Token] = []
        self.heading = False
        self.linked = False
        self.opens_sentence = True
        self.connected: Phrase | None = None  # the phrase right before a connector

    def read(self) -> list[Phrase]:
        """The inner loop of the extraction: what is common stays on the short path."""
        text, look_up = self.text, self.lexicon
        known = look_up.memo.get
        names = self.names
        verbs_are_cued = self.verbs_are_cued
        position = 0
        self.heading = text.startswith("#")
        for match in _RUN.finditer(text):
            start = match.start()
            new_line, heading, self.linked, ends = _gap(text[position:start])
            position = match.end()
            if new_line:
                self.heading = heading
            if ends:
                self.opens_sentence = True
            self.connected = None
            before = STOP
            if self.linked and self.name(start):
                continue
            if start < self.named:  # the rest of a name
                continue
            for surface in match[0].split(" "):
                end = start + len(surface)
                kind, stem, shape = known(surface) or look_up(surface)
                if names and kind == STOP and surface.casefold() in names:
                    kind, stem = CONTENT, look_up.stem(stem)
                if kind == CONTENT:
                    if before == VERB_CUE and shape <= LOWER and verbs_are_cued:
                        kind = STOP  # "to bake", "we baked"
                        self.opens_sentence = False
                    elif shape == INITIAL and self.tokens and self.tokens[-1].shape <= LOWER:
                        self.stop(STOP)  # "vitamin C. Oranges", unlike "Ursula K. Le Guin"
                        self.opens_sentence = True
                    else:
                        self.tokens.append(Token(start, end, stem, shape))
                elif kind == SCRIPT:
                    self.close()
                    self.scripts(surface, start)
                    kind = STOP
                elif self.tokens:
                    self.stop(kind)
                else:
                    self.opens_sentence = False
                    if self.connected is not None and kind != CONNECTOR:
                        self.connected = None
                before = kind
                start = end + 1
            if self.tokens:
                self.close()
        return self.phrases

    def name(self, start: int) -> bool:
        """What a link shows is a name as it stands, stop words and all: [[Windowpane test]]. False if it is a word."""
        end = self.text.find("]]", start, start + _LONGEST_NAME)
        matches = list(_ANY_WORD.finditer(self.text, start, end)) if end > 0 else []
        if not 2 <= len(matches) <= 6 or "\n" in self.text[start:end]:
            return False
        tokens: list[Token] = []
        for match in matches:
            kind, stem, shape = self.lexicon(match[0])
            if kind == SCRIPT:
                return False
            if kind in (CONTENT, STOP) and len(match[0]) > 1:
                token = Token(*match.span(), stem if kind == CONTENT else self.lexicon.stem(stem), shape)
                tokens.append(token)
        if len(tokens) < 2:
            return False
        self.named = end
        self.phrases.append(Phrase(tuple(tokens), self.heading, linked=True, opens_sentence=False, named=True))
        self.linked = self.opens_sentence = False
        return True

    def stop(self, kind: int) -> None:
        """A word of grammar ends the phrase right before it."""
        opening = self.opens_sentence and len(self.tokens) == 1
        if kind == DETERMINER and self.verbs_are_cued and (opening or self.tokens[-1].shape <= LOWER):
            self.tokens.pop()  # "bake the bread", "Knead the dough"
            self.opens_sentence = False
        phrase = self.close()
        self.connected = phrase if kind == CONNECTOR else None
        self.opens_sentence = False

    def close(self) -> Phrase | None:
        """Emit the phrase that is being read, and its compound with the one before a connector."""
        tokens = self.tokens
        if not tokens:
            return None
        while tokens and tokens[-1].shape in self.never_last:
            tokens.pop()
        if not tokens:
            return None
        if len(tokens) > 1:
            for position in range(len(tokens) - 2, -1, -1):
                shape = tokens[position].shape
                if shape < LOWER and (shape == PLURAL or tokens[position + 1].shape > LOWER):
                    return self.split(position)
        phrase = Phrase(tuple(tokens), self.heading, self.linked, self.opens_sentence)
        self.tokens = []
        self.linked = False
        self.opens_sentence = False
        self.phrases.append(phrase)
        left, self.connected = self.connected, None
        if left is not None:
            self.join(left, phrase)
        return phrase

    def split(self, position: int) -> Phrase | None:
        """ "rye starter" holds "gas", called "Shubayqa": the token at `position` is a verb."""
        after = self.tokens[position + 1 :]
        del self.tokens[position:]
        self.close()
        self.tokens = after
        self.opens_sentence = False
        return self.close()

    def join(self, left: Phrase, right: Phrase) -> None:
        """ "Left Hand" of "Darkness"; and in languages that make compounds so, "planches" d' "épicéa"."""
        if left.tokens[-1].shape > LOWER and right.tokens[0].shape > LOWER:
            tokens = left.tokens[-2:] + tuple(takewhile(lambda token: token.shape > LOWER, right.tokens[:2]))
        elif self.lexicon.compounds_by_connector and len(left.tokens) == 1:
            tokens = left.tokens + right.tokens[:1]
        else:
            return
        connector = len(tokens) - len(left.tokens[-2:])
        self.phrases.append(Phrase(tokens, right.heading, left.linked, left.opens_sentence, len(tokens) - connector))

    def scripts(self, run: str, offset: int) -> None:
        """Chinese and Japanese: a phrase for each run of words without grammar between them."""
        for words in script.split(run, self.lexicon.language):
            tokens = tuple(Token(offset + start, offset + end, stem, LOWER) for start, end, stem in words)
            self.phrases.append(Phrase(tokens, self.heading, self.linked, opens_sentence=False))
