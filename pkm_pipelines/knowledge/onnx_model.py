"""BERT sentence encoders as ONNX, built from their safetensors without torch.

sentence-transformers can export a model, but with torch and optimum, which take seconds to import and cannot be
installed beside it today. The encoder of BERT (Devlin et al., NAACL 2019) is forty lines of ONNX, so it is
written out here: embeddings, layers of self-attention and feed-forward, pooling (Reimers and Gurevych, EMNLP
2019), and unit length. onnxruntime fuses the operators as it would those of an exported model.

The weights lie in a file beside the graph, which onnxruntime maps into memory: nothing is read twice, and rows
of the vocabulary that no text uses are not read at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

import numpy as np

from pkm_pipelines.model.errors import KnowledgeError

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto
    from safetensors import safe_open

GRAPH_VERSION = 1
"""Part of the cache's key: another graph is another file."""
GRAPH_FILE = "model.onnx"
_WEIGHTS_FILE = "weights.bin"
_OPSET = 17
_IR_VERSION = 8
_ALIGNMENT = 4096
_MASKED = -1e9
_SAMPLES = 64


@dataclass(frozen=True)
class EncoderConfig:
    """What the graph needs to know of a model folder."""

    folder: Path
    layers: int
    heads: int
    dimension: int
    epsilon: float
    max_length: int
    pooling: Literal["mean", "cls"]
    normalize: bool

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The configuration of the sentence-transformers model in `folder`; None if it is of another kind.

        Kinds that are understood: BERT with GELU and absolute positions, mean or [CLS] pooling, no prompts.
        """
        if not all((folder / name).is_file() for name in ("modules.json", "model.safetensors", "tokenizer.json")):
            return None
        model, modules = _read_json(folder / "config.json"), _read_json(folder / "modules.json")
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        if (
            kinds[:2] != ["Transformer", "Pooling"]
            or kinds[2:] not in ([], ["Normalize"])
            or model.get("model_type") != "bert"
            or model.get("hidden_act") != "gelu"
            or model.get("position_embedding_type", "absolute") != "absolute"
            or any(_read_json(folder / "config_sentence_transformers.json").get("prompts", {}).values())
        ):
            return None
        pooling = _read_json(folder / modules[1]["path"] / "config.json")
        modes = {key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True}
        if modes not in ({"pooling_mode_mean_tokens"}, {"pooling_mode_cls_token"}):
            return None
        limit = _read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        return cls(
            folder=folder,
            layers=model["num_hidden_layers"],
            heads=model["num_attention_heads"],
            dimension=model["hidden_size"],
            epsilon=model["layer_norm_eps"],
            max_length=min(limit or model["max_position_embeddings"], model["max_position_embeddings"]),
            pooling="cls" if "pooling_mode_cls_token" in modes else "mean",
            normalize=len(kinds) == 3,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of the configuration and of samples of the weights, hexadecimal; reads some 300 KB."""
        digest = blake2b(f"{GRAPH_VERSION}".encode(), digest_size=8)
        for name in ("config.json", "modules.json", "sentence_bert_config.json"):
            path = self.folder / name
            digest.update(path.read_bytes() if path.is_file() else b"")
        weights = self.folder / "model.safetensors"
        size = weights.stat().st_size
        digest.update(str(size).encode())
        with weights.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(size * sample // _SAMPLES)
                digest.update(file.read(4096))
        return digest.hexdigest()


def ensure_model(config: EncoderConfig, cache_dir: Path, *, anew: bool = False) -> Path:
    """The graph of the model, from the cache or built into it (`anew`: in any case); returns the path of its ONNX file.

    The folder appears in the cache whole or not at all; two processes may build it at once. Raises
    `KnowledgeError` if the weights do not fit the configuration or the cache cannot be written.
    """
    target = cache_dir / f"{config.folder.name}-{config.fingerprint}"
    if anew:
        shutil.rmtree(target, ignore_errors=True)
    if not (target / GRAPH_FILE).is_file():
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with _whole_folder(target) as folder:
                build(config, folder)
        except (KeyError, TypeError, ValueError) as error:
            raise KnowledgeError(
                f"{config.folder}: the weights are not those of a BERT in a number format that numpy knows ({error}); "
                "set embedder.backend to `torch`"
            ) from error
        except OSError as error:
            raise KnowledgeError(f"{cache_dir}: the model's cache cannot be written: {error}") from error
    return target / GRAPH_FILE


def build(config: EncoderConfig, folder: Path) -> None:
    """Write the graph and its weights to `folder`, and check it by ONNX's own rules."""
    import onnx
    from safetensors import safe_open

    with (
        safe_open(config.folder / "model.safetensors", framework="numpy") as weights,
        (folder / _WEIGHTS_FILE).open("wb") as file,
    ):
        graph = _Graph(weights, file)
        _encoder(graph, config)
        onnx.save(graph.model(config), folder / GRAPH_FILE)
    onnx.checker.check_model(str(folder / GRAPH_FILE))


class _Graph:
    """Nodes and weights as they are added."""

    def __init__(self, weights: safe_open, file: BinaryIO) -> None:
        names = {name.removeprefix("bert."): name for name in weights.keys()}  # noqa: SIM118 (not a dict)
        self._weights = {short: lambda name=name: weights.get_tensor(name) for short, name in names.items()}
        self._file = file
        self._nodes: list[NodeProto] = []
        self._tensors: list[TensorProto] = []

    def weight(self, name: str) -> np.ndarray:
        """A weight of the model as float32; raises `KeyError`."""
        return self._weights[name]().astype(np.float32)

    def constant(self, value: np.ndarray | float | Sequence[int], *, external: bool = False) -> str:
        """A constant: numbers are float32, sequences int64. `external` ones lie in the file of weights."""
        from onnx import TensorProto, helper, numpy_helper

        kind = np.int64 if isinstance(value, Sequence) else np.float32
        array = np.ascontiguousarray(np.asarray(value, kind))
        name = f"c{len(self._tensors)}"
        if not external:
            self._tensors.append(numpy_helper.from_array(array, name))
            return name
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", _WEIGHTS_FILE), ("offset", self._file.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(entry))
        self._file.write(array.tobytes())
        self._tensors.append(tensor)
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node; returns its output's name."""
        from onnx import helper

        output = output or f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def linear(self, x: str, name: str) -> str:
        """x Wᵀ + b."""
        product = self.add("MatMul", x, self.constant(self.weight(f"{name}.weight").T, external=True))
        return self.add("Add", product, self.constant(self.weight(f"{name}.bias")))

    def layer_norm(self, x: str, name: str, epsilon: float) -> str:
        """Layer normalisation over the last axis."""
        scale, bias = (self.constant(self.weight(f"{name}.{part}")) for part in ("weight", "bias"))
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def model(self, config: EncoderConfig) -> Any:
        """The finished model: `input_ids` and `attention_mask` [batch, length] to `embedding` [batch, dimension]."""
        from onnx import TensorProto, helper

        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ]
        output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", config.dimension])
        graph = helper.make_graph(self._nodes, "sentence-encoder", inputs, [output], self._tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _encoder(g: _Graph, config: EncoderConfig) -> None:
    from onnx import TensorProto

    length = g.add("Slice", g.add("Shape", "input_ids"), g.constant([1]), g.constant([2]))
    positions = g.constant(g.weight("embeddings.position_embeddings.weight"), external=True)
    words = g.constant(g.weight("embeddings.word_embeddings.weight"), external=True)
    x = g.add("Gather", words, "input_ids")
    x = g.add("Add", x, g.add("Slice", positions, g.constant([0]), length, g.constant([0])))
    x = g.add("Add", x, g.constant(g.weight("embeddings.token_type_embeddings.weight")[0]))
    x = g.layer_norm(x, "embeddings.LayerNorm", config.epsilon)
    mask = g.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden = g.add("Mul", g.add("Sub", g.constant(1.0), mask), g.constant(_MASKED))
    hidden = g.add("Unsqueeze", hidden, g.constant([1, 2]))
    for layer in range(config.layers):
        x = _layer(g, config, x, hidden, f"encoder.layer.{layer}")
    pooled = _pool(g, config, x, mask)
    if config.normalize:
        g.add("LpNormalization", pooled, output="embedding", axis=-1, p=2)
    else:
        g.add("Identity", pooled, output="embedding")


def _layer(g: _Graph, config: EncoderConfig, x: str, hidden: str, name: str) -> str:
    size = config.dimension // config.heads
    split, joined = g.constant([0, 0, config.heads, size]), g.constant([0, 0, config.dimension])

    def heads(part: str, order: list[int]) -> str:
        projected = g.linear(x, f"{name}.attention.self.{part}")
        return g.add("Transpose", g.add("Reshape", projected, split), perm=order)

    query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
    scores = g.add("Mul", g.add("MatMul", query, key), g.constant(size**-0.5))
    weights = g.add("Softmax", g.add("Add", scores, hidden), axis=-1)
    context = g.add("Transpose", g.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    attended = g.linear(g.add("Reshape", context, joined), f"{name}.attention.output.dense")
    x = g.layer_norm(g.add("Add", x, attended), f"{name}.attention.output.LayerNorm", config.epsilon)
    inner = g.linear(x, f"{name}.intermediate.dense")
    bell = g.add("Add", g.add("Erf", g.add("Div", inner, g.constant(2**0.5))), g.constant(1.0))
    inner = g.add("Mul", g.add("Mul", inner, bell), g.constant(0.5))  # the exact GELU
    outer = g.linear(inner, f"{name}.output.dense")
    return g.layer_norm(g.add("Add", x, outer), f"{name}.output.LayerNorm", config.epsilon)


def _pool(g: _Graph, config: EncoderConfig, x: str, mask: str) -> str:
    if config.pooling == "cls":
        return g.add("Gather", x, g.add("Squeeze", g.constant([0])), axis=1)
    column = g.add("Unsqueeze", mask, g.constant([2]))
    total = g.add("ReduceSum", g.add("Mul", x, column), g.constant([1]), keepdims=0)
    return g.add("Div", total, g.add("ReduceSum", column, g.constant([1]), keepdims=0))


@contextmanager
def _whole_folder(target: Path) -> Generator[Path]:
    """A folder to fill that gets its name when it is whole; another process may have been faster."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            folder.rename(target)
        except OSError:
            if not (target / GRAPH_FILE).is_file():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise KnowledgeError(f"{path}: cannot be read: {error}") from error
