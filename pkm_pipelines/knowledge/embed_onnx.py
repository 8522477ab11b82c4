"""Embedding with onnxruntime and tokenizers alone: nothing else is imported, so that a search starts at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pkm_pipelines.knowledge.embed import Embedder, encode_in_windows
from pkm_pipelines.knowledge.onnx_model import EncoderConfig, ensure_model
from pkm_pipelines.model.errors import KnowledgeError

if TYPE_CHECKING:
    import onnxruntime
    import tokenizers


class OnnxEmbedder(Embedder):
    """A BERT sentence encoder in single precision: to a few units in the last place what torch computes."""

    def __init__(self, name: str, config: EncoderConfig, cache_dir: Path, batch_size: int) -> None:
        self.name = name
        self.dimension = config.dimension
        self._batch_size = batch_size
        self._counter = _load_tokenizer(config.folder)
        self._tokenizer = _load_tokenizer(config.folder)
        self._tokenizer.enable_truncation(config.max_length)
        self.max_tokens = config.max_length - self._tokenizer.num_special_tokens_to_add(is_pair=False)
        try:
            self._session = _open_session(ensure_model(config, cache_dir))
        except KnowledgeError:  # a file that something else has damaged: it is only a cache
            self._session = _open_session(ensure_model(config, cache_dir, anew=True))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The WordPiece tokens of each text."""
        return [len(encoding) for encoding in self._counter.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 of shape [texts, dimension]."""
        return encode_in_windows(texts, self.dimension, self._batch_size, self._tokenize, self._run)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def _run(self, tokens: list[list[int]]) -> np.ndarray:
        shape = (len(tokens), max(len(ids) for ids in tokens))
        input_ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, ids in enumerate(tokens):
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        return np.asarray(self._session.run(["embedding"], {"input_ids": input_ids, "attention_mask": mask})[0])


def _load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    # Set or not, it works the same; unset, each subprocess that is started later is warned about.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _open_session(graph: Path) -> onnxruntime.InferenceSession:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort  # pyright: ignore[reportAttributeAccessIssue] (compiled)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _cores()
    options.inter_op_num_threads = 1
    # Threads that wait by spinning win nothing on an idle machine, and beside other work lose a third of the speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except (
        ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.InvalidProtobuf, ort.NoSuchFile, ort.RuntimeException
    ) as error:  # fmt: skip
        raise KnowledgeError(f"{graph}: cannot be loaded: {str(error).partition(chr(10))[0]}") from error


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
