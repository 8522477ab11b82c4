"""What a note is about: its key phrases and the names in it, each with a score and the places where it stands.

A statistic over the phrases of one note (see `phrases`), in the line of C-value (K. Frantzi et al., "Automatic
recognition of multi-word terms", 2000: a phrase that only ever stands inside a longer one is no term) and YAKE
(R. Campos et al., 2020: position, casing and spread tell a term without a corpus). What a note adds to that is what its
author said: headings, links, tags and the title. It looks at one note alone, so that a note's concepts do not
change when another note does. docs/decisions/0006-concepts.md has the libraries that were measured against it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from pkm_pipelines.knowledge.lexicon import ACRONYM, LOWER, PLURAL, Lexicon, lexicon
from pkm_pipelines.knowledge.phrases import Phrase, Token, find_phrases
from pkm_pipelines.model.tables import EXTRACTED_CONCEPTS

MAXIMUM_CONCEPTS = 15
"""Concepts of a note, at most."""
MAXIMUM_SPANS = 50
"""Places of a concept that are kept, the first ones."""

_LONGEST = 3  # words of a phrase
_LONGEST_NAME = 4  # words of a name in capitals

# Weights, set by hand on a few notes and then measured on the gold notes of tests/data/knowledge/concepts.json.
_HEADING, _LINK, _EARLY = 1.0, 1.5, 0.5
_ENTITY, _TAG, _TITLE = 1.3, 1.5, 0.8
_NEVER_ALONE, _ONCE, _PREDICATE = 0.5, 0.5, 0.3
_EARLY_SHARE = 0.15
_ENOUGH = 4 * MAXIMUM_CONCEPTS  # candidates, past which single words that stand once and late are left out


@dataclass(frozen=True)
class Concept:
    """One concept of a note, as EXTRACTED_CONCEPTS stores it."""

    concept: str
    label: str
    kind: str
    score: float
    spans: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Candidate:
    tokens: tuple[Token, ...]  # where it stands first
    weight: float = 0.0
    count: int = 0
    nested: int = 0  # how many of them inside a longer phrase
    hosts: tuple[str, ...] = ()  # those longer phrases, each once
    spans: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    names: int = 0  # how many are cased like a name
    plain: int = 0  # how many are not
    verbal: bool = False  # may end in a verb


def extract_concepts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The concepts of each note of a batch.

    Takes columns note_id, title, content, language and tags (others are ignored); a null content gives no rows. Returns
    rows of EXTRACTED_CONCEPTS, the best first within a note, unique by (note_id, concept). Every span slices a
    spelling of the concept out of `content`. The result for a note depends on that note alone.
    """
    columns: dict[str, list[object]] = {name: [] for name in EXTRACTED_CONCEPTS.arrow.names}
    names = ("note_id", "title", "content", "language", "tags")
    for note_id, title, content, language, tags in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
        for concept in find_concepts(content or "", title=title, language=language, tags=tags or ()):
            columns["note_id"].append(note_id)
            columns["concept"].append(concept.concept)
            columns["label"].append(concept.label)
            columns["kind"].append(concept.kind)
            columns["score"].append(concept.score)
            columns["spans"].append([{"start": start, "end": end} for start, end in concept.spans])
            columns["language"].append(language)
    return pa.RecordBatch.from_pydict(columns, schema=EXTRACTED_CONCEPTS.arrow)


def find_concepts(
    content: str, *, title: str | None = None, language: str | None = None, tags: Iterable[str] = ()
) -> list[Concept]:
    """The concepts of one note, best first; the best has score 1 and the others their share of it."""
    words = lexicon(language)
    phrases = find_phrases(content, words, title or "")
    candidates = _count(phrases, len(content))
    parts = _parts(candidates)
    said = _stems(title or "", words), {_tag_key(tag, words) for tag in tags}
    scores = {
        key: _score(key, candidate, candidates, said, words)
        for key, candidate in candidates.items()
        if key not in parts and (candidate.nested < candidate.count or len(candidate.hosts) > 1)
    }
    ranked = sorted(scores, key=lambda key: (-scores[key], candidates[key].spans[0], key))
    best = scores[ranked[0]] if ranked else 1.0
    concepts: list[Concept] = []
    for key in ranked:
        if len(concepts) == MAXIMUM_CONCEPTS:
            break
        candidate = candidates[key]
        label = Counter(content[start:end] for start, end in candidate.spans).most_common(1)[0][0]
        if candidate.count == 1 and len(candidate.tokens) == 1 and words.is_verbal(label):
            continue
        concepts.append(
            Concept(
                concept=key,
                label=label,
                kind="entity" if _is_entity(candidate, words) else "phrase",
                score=round(scores[key] / best, 6),
                spans=tuple(sorted(set(candidate.spans))[:MAXIMUM_SPANS]),
            )
        )
    return concepts


def _count(phrases: list[Phrase], length: int) -> dict[str, _Candidate]:
    """Every run of one to three words within a phrase, and how often it stands alone or inside another."""
    candidates: dict[str, _Candidate] = {}
    repeated = {stem for stem, count in Counter(_all_stems(phrases)).items() if count > 1}
    spare: list[Phrase] = []
    early = length * _EARLY_SHARE
    for phrase in phrases:
        tokens = phrase.tokens
        weight = 1.0
        if phrase.heading:
            weight += _HEADING
        if phrase.linked:
            weight += _LINK
        if tokens[0].start < early:
            weight += _EARLY
        size = len(tokens)
        if size == 1:
            if weight > 1 or tokens[0].stem in repeated or tokens[0].shape > LOWER:
                _add(candidates, tokens[0].stem, tokens, phrase, weight, None)
            else:
                spare.append(phrase)
            continue
        whole = _key(tokens)
        if phrase.named:
            _add(candidates, whole, tokens, phrase, weight, None)
            continue
        if phrase.connector:
            _add(candidates, whole, tokens, phrase, weight, None)
            for part in (tokens[: phrase.connector], tokens[phrase.connector :]):
                candidate = candidates.get(_key(part))
                if candidate is not None:
                    candidate.nested += 1
                    if whole not in candidate.hosts:
                        candidate.hosts = (*candidate.hosts, whole)
            continue
        longest = _LONGEST
        if size > _LONGEST and all(token.shape > LOWER for token in tokens):
            longest = _LONGEST_NAME
        if size <= longest:
            _add(candidates, whole, tokens, phrase, weight, None)
        else:  # the end of a phrase too long to be a candidate is its head
            _add(candidates, _key(tokens[-2:]), tokens[-2:], phrase, weight, None)
        for first in range(size):
            # A part that comes once says less than its phrase, and a part comes once if one of its words does.
            for last in range(first, min(size, first + longest)):
                if tokens[last].stem not in repeated:
                    break
                part = tokens[first : last + 1]
                if len(part) < size and (size <= longest or len(part) != 2 or last < size - 1):
                    _add(candidates, _key(part), part, phrase, weight, whole)
    if len(candidates) < _ENOUGH:
        for phrase in spare:
            _add(candidates, phrase.tokens[0].stem, phrase.tokens, phrase, 1.0, None)
    return candidates


def _all_stems(phrases: list[Phrase]) -> Iterator[str]:
    for phrase in phrases:
        if not phrase.connector:
            for token in phrase.tokens:
                yield token.stem


def _add(
    candidates: dict[str, _Candidate],
    key: str,
    tokens: tuple[Token, ...],
    phrase: Phrase,
    weight: float,
    host: str | None,
) -> None:
    first, last = tokens[0], tokens[-1]
    candidate = candidates.get(key)
    if candidate is None:
        candidate = candidates[key] = _Candidate(tokens)
        candidate.verbal = phrase.opens_sentence and last.shape == PLURAL and last is not first
    candidate.count += 1
    candidate.weight += weight
    candidate.spans.append((first.start, last.end))
    if host is not None:
        candidate.nested += 1
        if host not in candidate.hosts:
            candidate.hosts = (*candidate.hosts, host)
    if phrase.heading:
        return  # a heading may be in title case: no evidence
    for token in tokens:
        if token.shape <= LOWER:
            candidate.plain += 1
            return
    if last is not first or first.shape == ACRONYM or not phrase.opens_sentence or first is not phrase.tokens[0]:
        candidate.names += 1


def _key(tokens: tuple[Token, ...]) -> str:
    """The normal form: stems with a blank between them where the note has one."""
    if len(tokens) == 1:
        return tokens[0].stem
    if tokens[0].end != tokens[1].start:
        return " ".join([token.stem for token in tokens])
    return "".join([token.stem for token in tokens])  # Chinese and Japanese


def _parts(candidates: dict[str, _Candidate]) -> set[str]:
    """The candidates that only ever stand inside one longer candidate, which says more."""
    parts: set[str] = set()
    for candidate in candidates.values():
        if len(candidate.tokens) > 1:
            for part in (_key(candidate.tokens[1:]), _key(candidate.tokens[:-1])):
                if part in candidates and candidates[part].count == candidate.count:
                    parts.add(part)
    return parts


def _score(
    key: str, candidate: _Candidate, candidates: dict[str, _Candidate], said: tuple[set[str], set[str]], words: Lexicon
) -> float:
    """How much a candidate is what the note is about. `said` are the stems of its title, and its tags."""
    title, tags = said
    count, nested = candidate.count, min(candidate.nested, candidate.count)
    alone = count - nested / len(candidate.hosts) if nested else count
    size = len(candidate.tokens)
    score = math.log2(1 + candidate.weight * alone / count) * math.log2(1 + size)
    if nested == count:
        score *= _NEVER_ALONE
    if count == 1:
        score *= _doubt(candidate, candidates, words)
    if _is_entity(candidate, words):
        score *= _ENTITY
    if title:
        score *= 1 + _TITLE * sum(token.stem in title for token in candidate.tokens) / size
    return score * _TAG if key in tags else score


def _doubt(candidate: _Candidate, candidates: dict[str, _Candidate], words: Lexicon) -> float:
    """How much less a phrase counts that stands in the note once, and that nothing but its words speaks for."""
    tokens = candidate.tokens
    if candidate.weight >= 1 + _HEADING or candidate.names:
        return 1.0
    if len(tokens) == 1:
        return 1.0 if words.nouns_are_capitalised else _ONCE
    if candidate.verbal:
        return _ONCE  # "Kneading helps", "Weed seeds": they look alike
    start = candidates.get(_key(tokens[:-1]))
    if start is not None and start.count > max(1, start.nested):
        return _PREDICATE  # "sleep moves": a term of the note and then, most likely, its verb
    return 1.0


def _is_entity(candidate: _Candidate, words: Lexicon) -> bool:
    """A name: always in capitals, at least once where grammar does not ask for them."""
    if candidate.names == 0 or candidate.plain:
        return False
    if len(candidate.tokens) == 1 and words.nouns_are_capitalised:
        return candidate.tokens[0].shape == ACRONYM
    return True


def _stems(text: str, words: Lexicon) -> set[str]:
    return {token.stem for phrase in find_phrases(text, words, text) for token in phrase.tokens}


def _tag_key(tag: str, words: Lexicon) -> str:
    """The normal form of the last part of a nested tag."""
    last = tag.rpartition("/")[2].replace("_", " ").replace("-", " ")
    return " ".join(words.stem(word) for word in last.casefold().split())
