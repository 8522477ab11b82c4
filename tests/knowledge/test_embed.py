"""Embedders: what the settings name is what runs, it is exact, and it starts fast."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.knowledge import embed, onnx_model
from pkm_pipelines.knowledge.embed import Embedder, embedder_name, load_embedder, model_folder
from pkm_pipelines.knowledge.embed_hashing import HashingEmbedder
from pkm_pipelines.model.errors import KnowledgeError
from pkm_pipelines.settings import EmbedderSettings

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "Raft replicates a log from a leader to its followers.",
    "consensus",
    "",
    " \n ",
    "🎉",
    "!!!!!!",
    "x" * 5000,
    "他在北京大学学习机器学习和自然语言处理。",
    "東京都に住んでいます。機械学習の本を読む。",
    "Die Überprüfung der Häuser dauerte länger als gedacht.",
    "def quicksort(items):\n    return items if len(items) < 2 else [min(items)]",
    "https://example.com/a/b?c=d&e=f#g",
    "The quick brown fox jumps over the lazy dog. " * 40,
    *(f"Note {n}: " + "alpha beta gamma delta epsilon " * n for n in range(1, 10)),
]

FROZEN_PLACES = [1, 23, 32, 163, 194, 222, 231, 238]
FROZEN_VALUES = [0.223607, 0.447214, -0.223607, 0.447214, 0.447214, 0.223607, 0.223607, -0.447214]


@pytest.fixture(scope="session")
def cache(ram_folder: Path) -> Path:
    return ram_folder / "models"


@pytest.fixture(scope="session")
def minilm(cache: Path) -> Embedder:
    embedder = load_embedder(EmbedderSettings(), cache)
    assert embedder is not None
    return embedder


@pytest.fixture(scope="session")
def reference() -> Any:
    """The same model in sentence-transformers, single precision: the peer that ours must equal."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)  # beside other tests, threads that wait for each other take ten times as long
    return SentenceTransformer(str(model_folder("all-MiniLM-L6-v2")), device="cpu")


def test_the_default_model_equals_sentence_transformers(minilm: Embedder, reference: Any) -> None:
    ours = minilm.encode(TEXTS)
    theirs = reference.encode(TEXTS, batch_size=4, normalize_embeddings=True)
    assert ours.shape == (len(TEXTS), minilm.dimension) == (len(TEXTS), 384)
    assert ours.dtype == np.float32
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-5
    assert (ours * theirs).sum(axis=1).min() > 0.99999
    assert np.abs(ours - theirs).max() < 1e-4


def test_tokens_are_counted_as_the_model_counts_them(minilm: Embedder, reference: Any) -> None:
    tokenizer = reference.tokenizer
    assert minilm.count_tokens(TEXTS) == [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in TEXTS]
    assert minilm.count_tokens([]) == []
    assert minilm.max_tokens == reference.max_seq_length - 2


def test_text_beyond_the_limit_is_cut_off(minilm: Embedder) -> None:
    long = " ".join(["word"] * (minilm.max_tokens + 50))
    cut, whole = minilm.encode([long, " ".join(["word"] * minilm.max_tokens)])
    np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_a_vector_does_not_depend_on_its_neighbours(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    together = minilm.encode(TEXTS)
    monkeypatch.setattr(embed, "WINDOW_TEXTS", 7)
    np.testing.assert_allclose(minilm.encode(TEXTS), together, atol=1e-5)
    np.testing.assert_allclose(minilm.encode(TEXTS[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(minilm.encode_query(TEXTS[0]), together[0], atol=1e-5)
    assert minilm.encode([]).shape == (0, 384)


def test_meaning_is_near(minilm: Embedder) -> None:
    query, near, far = minilm.encode(
        ["How do replicas agree on a value?", "Distributed consensus protocols", "A recipe for apple pie"]
    )
    assert query @ near > query @ far + 0.2


def test_search_starts_without_torch(cache: Path, minilm: Embedder) -> None:
    """What `pkm search` does first, in a fresh process."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pkm_pipelines.knowledge.embed import load_embedder\n"
        "from pkm_pipelines.settings import EmbedderSettings\n"
        "embedder = load_embedder(EmbedderSettings(), Path(sys.argv[1]))\n"
        "assert embedder.encode_query('a question').shape == (384,)\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'onnx', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, str(cache)], cwd=ROOT, check=True, timeout=60)


def test_the_model_is_built_once_and_whole(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = onnx_model.EncoderConfig.read(model_folder("all-MiniLM-L6-v2") or Path())
    assert config is not None
    built: list[Path] = []
    build = onnx_model.build

    def build_and_lose_a_race(config: onnx_model.EncoderConfig, folder: Path) -> None:
        build(config, folder)
        built.append(folder)
        if len(built) == 1:  # another process comes to the end first
            onnx_model.ensure_model(config, work)

    monkeypatch.setattr(onnx_model, "build", build_and_lose_a_race)
    graph = onnx_model.ensure_model(config, work)
    assert len(built) == 2
    assert onnx_model.ensure_model(config, work) == graph
    assert len(built) == 2
    assert [path.name for path in work.iterdir()] == [graph.parent.name]
    assert config.fingerprint in graph.parent.name


def test_a_build_that_fails_leaves_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: onnx_model.EncoderConfig, folder: Path) -> None:
        (folder / onnx_model.GRAPH_FILE).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(onnx_model, "build", fail)
    with pytest.raises(KnowledgeError, match="disk full"):
        load_embedder(EmbedderSettings(), work)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("damaged", ["model.onnx", "weights.bin"])
def test_a_damaged_cache_is_built_again(work: Path, minilm: Embedder, damaged: str) -> None:
    config = onnx_model.EncoderConfig.read(model_folder("all-MiniLM-L6-v2") or Path())
    assert config is not None
    file = onnx_model.ensure_model(config, work).parent / damaged
    file.write_bytes(file.read_bytes()[:1000])
    embedder = load_embedder(EmbedderSettings(), work)
    assert embedder is not None
    np.testing.assert_allclose(embedder.encode(TEXTS[:1]), minilm.encode(TEXTS[:1]), atol=1e-6)


def test_a_graph_that_cannot_be_loaded_is_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnx_model, "build", lambda _, folder: (folder / onnx_model.GRAPH_FILE).write_bytes(b"no graph")
    )
    with pytest.raises(KnowledgeError, match=r"model\.onnx: cannot be loaded"):
        load_embedder(EmbedderSettings(), work)


def test_names_follow_from_the_settings_alone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(**values: Any) -> str | None:
        return embedder_name(EmbedderSettings(**values))

    monkeypatch.setattr(embed, "cpu_has_bf16", lambda: True)
    assert name() == "all-MiniLM-L6-v2/onnx/fp32"
    assert name(model="sentence-transformers/all-MiniLM-L6-v2", backend="onnx") == "all-MiniLM-L6-v2/onnx/fp32"
    assert name(backend="torch") == "all-MiniLM-L6-v2/torch/fp32"
    assert name(model="org/other") == "org/other/torch/bf16"
    assert name(model="org/other", backend="torch") == "org/other/torch/fp32"
    monkeypatch.setattr(embed, "cpu_has_bf16", lambda: False)
    assert name(model="org/other") == "org/other/torch/fp32"
    assert name(model="none") is None
    assert name(model="hashing") == HashingEmbedder.name
    with pytest.raises(KnowledgeError, match="onnx runs folders of BERT"):
        name(model="org/other", backend="onnx")
    copy = work / "my model"
    copy.symlink_to(model_folder("all-MiniLM-L6-v2") or Path())
    assert name(model=str(copy)) == "all-MiniLM-L6-v2/onnx/fp32"


def test_a_folder_of_ones_own_runs_in_onnxruntime_where_it_can(work: Path, minilm: Embedder, cache: Path) -> None:
    folder = work / "mine"
    folder.mkdir()
    bundled = model_folder("all-MiniLM-L6-v2")
    assert bundled is not None
    for path in bundled.iterdir():
        (folder / path.name).symlink_to(path)
    settings = EmbedderSettings(model=str(folder))
    embedder = load_embedder(settings, cache)
    assert embedder is not None
    assert embedder.name == embedder_name(settings)
    assert embedder.name.startswith("mine@")
    np.testing.assert_allclose(embedder.encode(TEXTS[:2]), minilm.encode(TEXTS[:2]), atol=1e-6)
    (folder / "modules.json").unlink()
    (folder / "modules.json").write_text('[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "x"}]')
    assert (embedder_name(settings) or "").startswith("mine/torch/")


def test_any_other_model_runs_in_torch(minilm: Embedder, reference: Any, cache: Path) -> None:
    embedder = load_embedder(EmbedderSettings(backend="torch"), cache)
    assert embedder is not None
    assert embedder.name == "all-MiniLM-L6-v2/torch/fp32"
    assert (embedder.dimension, embedder.max_tokens) == (384, minilm.max_tokens)
    assert embedder.count_tokens(TEXTS) == minilm.count_tokens(TEXTS)
    assert embedder.count_tokens([]) == []
    some = TEXTS[:13]
    assert (embedder.encode(some) * minilm.encode(some)).sum(axis=1).min() > 0.99999
    np.testing.assert_allclose(embedder.encode_query(TEXTS[0]), embedder.encode(some)[0], atol=1e-6)
    assert embedder.encode([]).shape == (0, 384)


def test_bfloat16_is_close_or_refused(reference: Any, minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    from pkm_pipelines.knowledge import embed_torch

    folder = str(model_folder("all-MiniLM-L6-v2"))
    rounded = embed_torch.TorchEmbedder("m/torch/bf16", folder, 8, is_offline=True).encode(TEXTS[:13])
    assert rounded.dtype == np.float32
    assert np.abs(np.linalg.norm(rounded, axis=1) - 1).max() < 1e-5
    assert (rounded * minilm.encode(TEXTS[:13])).sum(axis=1).min() > embed_torch.MIN_COSINE
    monkeypatch.setattr(embed_torch, "MIN_COSINE", 1.1)
    with pytest.raises(KnowledgeError, match=r"set embedder\.backend to `torch`"):
        embed_torch.TorchEmbedder("m/torch/bf16", folder, 8, is_offline=True)


def test_a_model_that_cannot_be_loaded_is_named(work: Path) -> None:
    empty = work / "empty"
    empty.mkdir()
    with pytest.raises(KnowledgeError, match=r"embedder\.model.*empty"):
        load_embedder(EmbedderSettings(model=str(empty)), work)


def test_no_embedder(work: Path) -> None:
    assert load_embedder(EmbedderSettings(model="none"), work) is None


def test_hashing_is_the_same_everywhere() -> None:
    """Frozen: another vector here is another table for everyone who uses it."""
    vector = HashingEmbedder().encode(["Raft replicates a log."])[0]
    assert np.flatnonzero(vector).tolist() == FROZEN_PLACES
    assert vector[FROZEN_PLACES].tolist() == pytest.approx(FROZEN_VALUES, abs=1e-6)


def test_hashing_places_like_texts_near() -> None:
    embedder = HashingEmbedder()
    query, near, inflected, far = embedder.encode(
        ["replicated logs", "how a log is replicated", "replication of the logging", "apple pie with cream"]
    )
    assert query @ near > query @ far + 0.1
    assert query @ inflected > query @ far
    zh, zh_near, zh_far = embedder.encode(["机器学习", "学习机器的方法", "东京大阪"])
    assert zh @ zh_near > zh @ zh_far + 0.3


@given(st.lists(st.text(max_size=80), max_size=6))
def test_hashing_has_a_unit_vector_for_any_text(texts: list[str]) -> None:
    embedder = HashingEmbedder()
    vectors = embedder.encode(texts)
    assert vectors.shape == (len(texts), embedder.dimension)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors, embedder.encode(texts))
    assert all(count >= 0 for count in embedder.count_tokens(texts))


def test_a_model_that_cannot_be_had_is_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A hub where nobody listens: what a laptop without a network sees.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(KnowledgeError, match=r"^embedder\.model: 'no-such-model' cannot be loaded: "):
        load_embedder(EmbedderSettings(model="no-such-model"), work)
