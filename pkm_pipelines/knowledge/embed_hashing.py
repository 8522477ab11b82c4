"""A deterministic embedder without a model: for tests, and for machines that shall not run one.

Feature hashing (Weinberger et al., ICML 2009) of words, pairs of words and parts of words: texts that share
words are near each other, and those that mean the same in other words are not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise

import numpy as np

from pkm_pipelines.knowledge.embed import Embedder

DIMENSION = 256
NAME = f"hashing/blake2b/{DIMENSION}"
# Runs of letters and digits; Chinese and Japanese characters one by one, as they come without blanks.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_PAIR_WEIGHT = 0.5
_PART_WEIGHT = 0.5
_PART_LENGTH = 4


class HashingEmbedder(Embedder):
    """Counts of hashed features, damped by a logarithm, at unit length. Equal on every machine."""

    name = NAME
    dimension = DIMENSION
    max_tokens = 512

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The words of each text."""
        return [sum(1 for _ in _WORD.finditer(text)) for text in texts]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 of shape [texts, 256]."""
        vectors = np.zeros((len(texts), DIMENSION), np.float32)
        for row, text in enumerate(texts):
            for feature, count in Counter(_features(text)).items():
                place, sign = _place(feature[0])
                vectors[row, place] += sign * feature[1] * (1 + math.log(count))
        vectors[~vectors.any(axis=1), 0] = 1  # no word at all: cosine needs a direction
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _features(text: str) -> Iterator[tuple[str, float]]:
    words = [match[0] for match in _WORD.finditer(text.lower())]
    for word in words:
        yield word, 1.0
        if len(word) > _PART_LENGTH:
            yield f"{word[:_PART_LENGTH]}*", _PART_WEIGHT
    for first, second in pairwise(words):
        yield f"{first} {second}", _PAIR_WEIGHT


@lru_cache(maxsize=1 << 16)
def _place(feature: str) -> tuple[int, int]:
    number = int.from_bytes(blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest(), "big")
    return (number >> 1) % DIMENSION, 1 if number & 1 else -1
