"""The whole pipeline over a large vault: cold, with no change, and after an edit of one note.

    python -m benchmarks.pipeline [--notes 10000] [--embedder hashing|none|all-MiniLM-L6-v2] [--peer-python PATH]

The vault is made from the vaults under `--data` (by default `../shared/data/vaults`): each note once more in
every copy, in a folder of its own, until there are enough. Every figure is a whole `pkm run` as a user would
start it, Python's start-up included. The peer is obsidiantools (`pip install obsidiantools`), which reads the
same vault into memory and connects it; it keeps nothing, so it has no figure for a second run but the first one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "vaults"
PEER = """
import pathlib, sys, obsidiantools.api as api
vault = api.Vault(pathlib.Path(sys.argv[1])).connect().gather()
print(len(vault.file_index), vault.graph.number_of_edges())
"""


@dataclass(frozen=True)
class Figure:
    """One measured command."""

    what: str
    seconds: float
    cpu_seconds: float
    peak_mb: float
    target_seconds: float | None = None

    def row(self) -> str:
        """A line of the table."""
        target = f"{self.target_seconds:>8.0f}" if self.target_seconds else " " * 8
        return (
            f"| {self.what:<44} | {self.seconds:>8.2f} | {target} | {self.cpu_seconds:>8.2f} | {self.peak_mb:>8.0f} |"
        )


def make_vault(data: Path, target: Path, count: int) -> int:
    """Copy notes of the vaults below `data` until there are `count`; returns the bytes written."""
    notes = sorted(path for path in data.rglob("*.md") if not any(part.startswith(".") for part in path.parts[1:]))
    if not notes:
        raise SystemExit(f"no notes below {data}; name a folder of vaults with --data")
    size = 0
    for number in range(count):
        copy, index = divmod(number, len(notes))
        path = target / f"copy {copy}" / notes[index].relative_to(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        size += Path(shutil.copyfile(notes[index], path)).stat().st_size
    return size


def measure(what: str, command: list[str], target: float | None = None, **environment: str) -> Figure:
    """Run a command and take its wall time and peak memory (the largest single process)."""
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{what}: {' '.join(command)} failed")
    return Figure(what, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, target)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=int, default=10_000)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--embedder", default="hashing")
    parser.add_argument("--peer-python", help="a Python that has obsidiantools")
    options = parser.parse_args()
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        home, vault = Path(folder) / "home", Path(folder) / "vault"
        home.mkdir()
        size = make_vault(options.data, vault, options.notes)
        (home / "pkm.toml").write_text(
            f'[[sources]]\nname = "vault"\npath = "{vault}"\n[embedder]\nmodel = "{options.embedder}"\n'
        )
        config = {"PKM_CONFIG": str(home / "pkm.toml")}
        pkm = [str(Path(sys.executable).parent / "pkm")]
        figures = [
            measure("pkm run, cold", [*pkm, "run"], 30, **config),
            measure("pkm run, nothing changed", [*pkm, "run"], 2, **config),
        ]
        note = next(path for path in sorted(vault.rglob("*.md")) if path.stat().st_size > 2000)
        note.write_text(note.read_text() + "\nOne more sentence about zymurgy.\n")
        figures.append(measure("pkm run, one note edited", [*pkm, "run"], 5, **config))
        if options.embedder != "none":
            figures.append(measure("pkm search, the edited note", [*pkm, "search", "zymurgy"], **config))
        if options.peer_python:
            figures.append(measure("obsidiantools, connect and gather", [options.peer_python, "-c", PEER, str(vault)]))
    print(f"{options.notes} notes, {size / 1e6:.1f} MB, embedder {options.embedder}\n")
    columns = ("seconds", "target", "CPU s", "peak MB")
    print(f"| {'what':<44} | " + " | ".join(f"{name:>8}" for name in columns) + " |")
    print(f"|{'-' * 46}|" + "|".join(["-" * 10] * len(columns)) + "|")
    for figure in figures:
        print(figure.row())


if __name__ == "__main__":
    main()
