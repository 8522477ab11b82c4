"""The sources beside git on the same files: scanning a folder, and walking a history.

    python -m benchmarks.sources [--folder FOLDER] [--notes 10000] [--commits 10000]

The folder's peer is git's own index: `git add` reads and hashes everything, as a first scan does, and `git status`
compares size, times and inodes, as a scan of an unchanged vault does. The history's peer is `git log --first-parent
--raw -M`, which finds the same renames and keeps nothing; the source writes an index from it, and then reads every
version of every note. All of it runs over the real state service, each task in a process of its own, whose peak
memory is given.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pkm_pipelines.model.records import SourceBatch
from pkm_pipelines.settings import SourceSettings, StateSettings
from pkm_pipelines.sources import open_source
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_client import State

ROOT = Path(__file__).resolve().parents[1]
SEED = 5
REPEATS = 3


def make_vault(root: Path, notes: int) -> None:
    """Notes of some 2 kB in a hundred folders."""
    rng = random.Random(SEED)
    for n in range(notes):
        path = root / f"folder {n % 100}" / f"note number {n}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (" ".join(f"word{rng.randrange(5000)}" for _ in range(12)) for _ in range(18))
        path.write_text(f"---\ntags: [t{n % 50}]\n---\n# Note {n}\n\n" + "\n".join(lines))


def make_history(path: Path, commits: int) -> None:
    """A branch of a thousand notes: one to three are edited in each commit, one in ten is renamed."""
    rng = random.Random(SEED)
    notes = {f"dir{n % 20}/note {n}.md": [f"line {rng.randrange(10**9)}" for _ in range(60)] for n in range(1000)}
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
    importer = subprocess.Popen(["git", "-C", str(path), "fast-import", "--quiet"], stdin=subprocess.PIPE)
    assert importer.stdin is not None
    for n in range(commits):
        message = f"commit {n}".encode()
        head = f"commit refs/heads/main\ncommitter A <a@b> {1_500_000_000 + n * 3600} +0000\ndata {len(message)}\n"
        importer.stdin.write(head.encode() + message + b"\n")
        for name in list(notes) if n == 0 else rng.sample(sorted(notes), rng.choice([1, 1, 1, 2, 3])):
            changed = name
            if n and rng.random() < 0.1:
                changed = f"dir{rng.randrange(20)}/renamed {n}.md"
                notes[changed] = notes.pop(name)
                importer.stdin.write(f'R "{name}" "{changed}"\n'.encode())
            if n:
                notes[changed] = [*notes[changed][1:], f"edited in {n}"]
            data = "\n".join(notes[changed]).encode()
            importer.stdin.write(f'M 100644 inline "{changed}"\ndata {len(data)}\n'.encode() + data + b"\n")
    importer.stdin.close()
    if importer.wait():
        raise SystemExit("git fast-import failed")
    subprocess.run(["git", "-C", str(path), "repack", "-adq"], check=True)


def work(task: str, path: Path, kind: str, folder: Path) -> None:
    """One task in this process; prints how long it took, how many changes it told, and the peak memory."""
    settings = SourceSettings.model_validate({"name": "bench", "kind": kind, "path": path})
    source = open_source(settings, path, 2000, 64 << 20)
    with State.connect(Location((folder / "state").as_uri()), StateSettings(idle_seconds=60), folder / "run") as state:
        state.get("meta:none")  # the service is running from here on
        now = dt.datetime.now(dt.UTC)

        def drain(batches: Iterator[SourceBatch]) -> int:
            count = 0
            for batch in batches:
                state.apply(batch.mutations)
                count += len(batch.changes)
            return count

        started = time.perf_counter()
        if task == "history":
            count = drain(source.history(state, dt.date(1970, 1, 1), dt.date(2100, 1, 1)))
        elif task == "changes":
            count = int(source.has_changes(state))
        else:
            count = drain(source.notes(state, now))
        seconds = time.perf_counter() - started
        if task == "stop":
            state.stop_service()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    print(json.dumps({"seconds": seconds, "count": count, "peak_mb": peak_mb}))


def measure(task: str, path: Path, kind: str, folder: Path) -> dict[str, float]:
    """Run `work` in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.sources", "--worker", task, str(path), kind, str(folder)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def time_git(*words: str) -> float:
    """Seconds that a git command takes."""
    started = time.perf_counter()
    subprocess.run(["git", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def bench_folder(folder: Path, notes: int) -> Iterator[tuple[str, str, str, str]]:
    """First scan and unchanged scan, beside `git add` and `git status`."""
    vault = folder / "vault"
    make_vault(vault, notes)
    subprocess.run(["git", "init", "-q", str(vault)], check=True)
    first_git = time_git("-C", str(vault), "add", "-A")
    first = measure("notes", vault, "folder", folder)
    assert first["count"] == notes
    yield f"first scan, {notes:,} notes", f"{first['seconds']:.2f} s", f"`git add` {first_git:.2f} s", memory(first)
    again = [measure("notes", vault, "folder", folder) for _ in range(REPEATS)]
    assert all(figures["count"] == 0 for figures in again)
    again_git = min(time_git("-C", str(vault), "status", "--porcelain") for _ in range(REPEATS))
    best = min(again, key=lambda figures: figures["seconds"])
    yield "unchanged scan", f"{best['seconds']:.2f} s", f"`git status` {again_git:.2f} s", memory(best)
    (vault / "folder 99" / "note number 99.md").write_text("edited")
    one = measure("notes", vault, "folder", folder)
    assert one["count"] == 1
    yield "one note edited", f"{one['seconds']:.2f} s", "–", memory(one)


def bench_git(folder: Path, commits: int) -> Iterator[tuple[str, str, str, str]]:
    """The index of a history, and its contents, beside `git log`."""
    path = folder / "notes.git"
    make_history(path, commits)
    log = min(
        time_git("-C", str(path), "log", "--first-parent", "--raw", "-M", "main"),
        time_git("-C", str(path), "log", "--first-parent", "--raw", "-M", "main"),
    )
    patches = time_git("-C", str(path), "log", "--first-parent", "-p", "-M", "main")
    index = measure("notes", path, "git", folder)
    peer = f"`git log --raw -M` {commits / log:,.0f} commits/s"
    rate = f"{commits / index['seconds']:,.0f} commits/s ({index['seconds']:.1f} s)"
    yield f"index of {commits:,} commits, and HEAD", rate, peer, memory(index)
    history = measure("history", path, "git", folder)
    rate = f"{history['count'] / history['seconds']:,.0f} changes/s ({history['seconds']:.1f} s)"
    yield "every change with its content", rate, f"`git log -p -M` {patches:.1f} s", memory(history)
    nothing = measure("notes", path, "git", folder)
    assert nothing["count"] == 0
    yield "nothing new", f"{nothing['seconds'] * 1000:.0f} ms", "–", memory(nothing)


def memory(figures: dict[str, float]) -> str:
    """Peak resident memory of a worker."""
    return f"{figures['peak_mb']:.0f} MB"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to measure (a temporary folder)")
    parser.add_argument("--notes", type=int, default=10_000)
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        task, path, kind, folder = arguments.worker
        work(task, Path(path), kind, Path(folder))
        return
    if shutil.which("git") is None:
        raise SystemExit("the peer is git, and there is no git command here")
    os.environ["GIT_CONFIG_GLOBAL"] = os.devnull
    print("| task | source | peer | peak memory |\n|---|---|---|---|")
    for bench, size in ((bench_folder, arguments.notes), (bench_git, arguments.commits)):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for row in bench(Path(folder), size):
                print(f"| {' | '.join(row)} |", flush=True)
            measure(
                "stop", Path(folder) / ("vault" if bench is bench_folder else "notes.git"), KINDS[bench], Path(folder)
            )


KINDS = {bench_folder: "folder", bench_git: "git"}

if __name__ == "__main__":
    main()
