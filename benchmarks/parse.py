"""Parsing notes and resolving their links: how fast on one core, beside obsidiantools and markdown-it-py.

    python -m benchmarks.parse [--data FOLDER] [--vault NAME …] [--rounds 5] [--peer-python PATH]

Every contender reads the same files into memory first, but for obsidiantools, which reads them itself. Each runs in
a process of its own, in turns; the rate is that of its fastest pass of several, in processor time of all threads, so
that neither warming up nor what else the machine does counts much. Memory is the peak of its process.

`pyromark` alone, its events counted and dropped, is the floor under our parser and not a peer. Our `parse_note` is a
whole `ParsedNote`: front matter, headings, tags, links, tasks, callouts, blocks, plain text, words; without the
language. `parse_notes` is the same to Arrow, and with the language. obsidiantools' `connect` is front matter, links and
the graph, `gather` the plain text. markdown-it-py yields tokens and knows no wikilinks.

Peers are optional: `pip install obsidiantools markdown-it-py`, here or in an environment whose Python `--peer-python`
names; one that is not there is left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "vaults"
VAULTS = ["jackyzha0-garden", "mdn-de-http"]
TARGET_NOTES_PER_SECOND = 5000
LONG_SECONDS = 5
"""A contender that takes longer for one pass is not asked for another."""

Notes = list[tuple[str, str]]


def read_vault(root: Path) -> Notes:
    """(path, content) of every note, in order."""
    files = sorted(path for path in root.rglob("*.md") if path.is_file())
    return [(path.relative_to(root).as_posix(), path.read_bytes().decode()) for path in files]


def run_pyromark(root: Path) -> Callable[[], int]:
    from pkm_pipelines.knowledge.outline import _PARSER  # pyright: ignore[reportPrivateUsage]  # the same options

    notes = read_vault(root)
    return lambda: sum(1 for _, content in notes for _ in _PARSER.events_with_range(content, merge_text=True))


def run_parse_note(root: Path) -> Callable[[], int]:
    from pkm_pipelines.knowledge.markdown import parse_note

    notes = read_vault(root)
    return lambda: sum(len(parse_note(content, path).links) for path, content in notes)


def run_parse_notes(root: Path) -> Callable[[], int]:
    from pkm_pipelines.knowledge.markdown import parse_notes

    batch = bronze(read_vault(root))
    return lambda: parse_notes(batch, {}).num_rows


def run_edges(root: Path) -> Callable[[], int]:
    from pkm_pipelines.knowledge.graph import edges
    from pkm_pipelines.knowledge.links import VaultIndex
    from pkm_pipelines.knowledge.markdown import parse_notes

    notes = read_vault(root)
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    batch = bronze(notes)
    ids = {path: path for path, _ in notes}
    return lambda: edges(parse_notes(batch, {}, detect=lambda _: None), VaultIndex(files), ids).num_rows


def run_mentions(root: Path) -> Callable[[], int]:
    from pkm_pipelines.knowledge.markdown import parse_notes
    from pkm_pipelines.knowledge.mentions import mentions, note_names

    parsed = parse_notes(bronze(read_vault(root)), {}, detect=lambda _: None)
    rows = parsed.select(["note_id", "path", "title", "aliases"]).to_pylist()
    names = [name for row in rows for name in note_names(row["note_id"], row["path"], row["title"], row["aliases"])]
    return lambda: mentions(parsed, names).num_rows


def run_markdown_it(root: Path) -> Callable[[], int]:
    from markdown_it import MarkdownIt

    notes = read_vault(root)
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return lambda: sum(len(parser.parse(content)) for _, content in notes)


def run_obsidiantools(root: Path) -> Callable[[], int]:
    from obsidiantools.api import Vault

    return lambda: Vault(root).connect().graph.number_of_edges()


def run_obsidiantools_text(root: Path) -> Callable[[], int]:
    from obsidiantools.api import Vault

    return lambda: len(Vault(root).connect().gather().readable_text_index)


def bronze(notes: Notes) -> Any:
    """The notes as rows of `bronze.raw_notes`."""
    import datetime as dt

    import pyarrow as pa

    from pkm_pipelines.model.tables import RAW_NOTES

    now = dt.datetime.now(dt.UTC)
    seen = {"lsn": 1, "ordinal": 0, "changed_at": now, "ingested_at": now, "partition_date": now.date()}
    rows = [
        {"change_id": path, "note_id": path, "path": path, "content": content, "source": "vault", **seen}
        | {"change_type": "INSERT"}
        for path, content in notes
    ]
    return pa.RecordBatch.from_pylist(rows, schema=RAW_NOTES.arrow)


CONTENDERS: dict[str, tuple[bool, Callable[[Path], Callable[[], int]]]] = {
    "pyromark alone: events": (False, run_pyromark),
    "ours: parse_note": (False, run_parse_note),
    "ours: parse_notes, with language": (False, run_parse_notes),
    "ours: parse_notes, resolved to edges": (False, run_edges),
    "ours: mentions of all names": (False, run_mentions),
    "markdown-it-py: tokens": (True, run_markdown_it),
    "obsidiantools: connect": (True, run_obsidiantools),
    "obsidiantools: connect, gather": (True, run_obsidiantools_text),
}


def work(contender: str, root: Path) -> None:
    """Run one contender in this process and print its figures."""
    try:
        once = CONTENDERS[contender][1](root)
    except ImportError:
        print(json.dumps(None))
        return
    seconds: list[float] = []
    while len(seconds) < 4 and sum(seconds) < LONG_SECONDS:
        began = time.process_time()
        once()
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    print(json.dumps({"seconds": min(seconds), "peak_mb": peak}))


def compare(root: Path, rounds: int, peer_python: str) -> None:
    """Run every contender `rounds` times, in turns, and print the table of one vault."""
    notes = read_vault(root)
    megabytes = sum(len(content.encode()) for _, content in notes) / 1e6
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for contender, (is_peer, _) in CONTENDERS.items():
            if contender in best and best[contender]["seconds"] > LONG_SECONDS:
                continue
            command = [peer_python if is_peer else sys.executable, __file__, "--worker", contender, "--root", str(root)]
            answer = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
            result = json.loads(answer.stdout.splitlines()[-1])
            if result is not None and result["seconds"] < best.get(contender, result | {"seconds": 1e9})["seconds"]:
                best[contender] = result
    ours = best["ours: parse_note"]["seconds"]
    print(f"\n{root.name}: {len(notes)} notes, {megabytes:.1f} MB\n")
    print("| contender | notes/s | MB/s | time, parse_note = 1 | peak MB |")
    print("|---|---:|---:|---:|---:|")
    for contender in CONTENDERS:
        if contender not in best:
            print(f"| {contender} | not installed | | | |")
            continue
        seconds, peak = best[contender]["seconds"], best[contender]["peak_mb"]
        rates = f"{len(notes) / seconds:,.0f} | {megabytes / seconds:.1f}"
        print(f"| {contender} | {rates} | {seconds / ours:.2f} | {peak:.0f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of vaults")
    parser.add_argument("--vault", action="append", help="a vault in it; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.root)
        return
    for vault in options.vault or VAULTS:
        compare(options.data / vault, options.rounds, options.peer_python)
    print(
        f"\nTarget: {TARGET_NOTES_PER_SECOND:,} notes/s of `parse_note` on the garden. Python {sys.version.split()[0]}."
    )


if __name__ == "__main__":
    main()
