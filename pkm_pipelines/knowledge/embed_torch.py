"""Embedding with sentence-transformers: any model it knows, by name or folder."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from pkm_pipelines.knowledge.embed import WINDOW_TEXTS, Embedder
from pkm_pipelines.model.errors import KnowledgeError

MIN_COSINE = 0.99
_HUB_SECONDS = 10
CALIBRATION = (
    "Raft replicates a log from a leader to its followers.",
    "consensus",
    "How do I keep notes that I will find again?",
    "- [ ] buy milk\n- [x] write the report",
    "def quicksort(items):\n    return items if len(items) < 2 else [min(items)]",
    "Die Überprüfung der Häuser dauerte länger als gedacht.",
    "他在北京大学学习机器学习和自然语言处理。",
    "東京都に住んでいます。",
    "2024-01-01 12:30 meeting with A. B. about 3.5 % growth",
    "The quick brown fox jumps over the lazy dog. " * 20,
)


class TorchEmbedder(Embedder):
    """A sentence-transformers model; in bfloat16 when its name says so, checked against single precision."""

    def __init__(self, name: str, model: str, batch_size: int, *, is_offline: bool) -> None:
        if is_offline:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.name = name
        self._batch_size = batch_size
        try:
            if not is_offline:
                is_offline = _is_downloaded(model)
            if not is_offline:
                _find_on_hub(model)
            self._model = SentenceTransformer(model, local_files_only=is_offline)
        except Exception as error:  # of whatever kind the hub's client, or the makers of the model, raise
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            raise KnowledgeError(f"embedder.model: {model!r} cannot be loaded: {reason}") from error
        dimension = self._model.get_embedding_dimension()
        if dimension is None:
            raise KnowledgeError(f"embedder.model: {model!r} does not say how long its vectors are")
        self.dimension = dimension
        self._tokenizer = self._model.tokenizer
        special = len(self._tokenizer("")["input_ids"])
        self.max_tokens = (self._model.max_seq_length or self._tokenizer.model_max_length) - special
        if name.endswith("/bf16"):
            self._use(torch.bfloat16)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 of shape [texts, dimension]. sentence-transformers sorts each window by length."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), WINDOW_TEXTS):
            window = list(texts[start : start + WINDOW_TEXTS])
            vectors[start : start + len(window)] = self._model.encode_document(
                window, batch_size=self._batch_size, show_progress_bar=False
            )
        return _unit(vectors)

    def encode_query(self, text: str) -> np.ndarray:
        """The vector of a question, with the model's own prompt for questions if it has one."""
        return _unit(np.asarray(self._model.encode_query([text], show_progress_bar=False), np.float32))[0]

    def _use(self, kind: object) -> None:
        exact = self.encode(CALIBRATION)
        self._model.to(kind)
        cosine = float((exact * self.encode(CALIBRATION)).sum(axis=1).min())
        if cosine < MIN_COSINE:
            raise KnowledgeError(
                f"{self.name}: bfloat16 changes this model's vectors too much (cosine {cosine:.3f}); "
                "set embedder.backend to `torch`, which computes in single precision"
            )


def _names(model: str) -> list[str]:
    """What a model may be called on the hub."""
    return [model] if "/" in model else [f"sentence-transformers/{model}", model]


def _is_downloaded(model: str) -> bool:
    """Whether the model lies in the hub's cache on this machine: then nobody is asked for it again."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, "config.json"), str) for name in _names(model))


def _find_on_hub(model: str) -> None:
    """Ask the hub for the model, once; loading it would ask for more than a minute where nobody answers.

    Raises what the hub's client raises if there is no such model, or no hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    *others, last = _names(model)
    for name in others:
        try:
            HfApi().model_info(name, timeout=_HUB_SECONDS)
        except RepositoryNotFoundError:
            continue
        return
    HfApi().model_info(last, timeout=_HUB_SECONDS)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows at unit length: the model's own scaling is as coarse as the numbers it computes in."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
