"""The state: how long a question takes, alone and among eight processes, beside SQLite in the same run.

    python -m benchmarks.state [--folder FOLDER] [--s3] [--seconds 3]

SQLite is in WAL mode with `synchronous=FULL`: it too is durable when it answers, and it syncs the disk, which SlateDB
does not do on local files. It is one file of one host; the state is the same on a bucket (`--s3` measures it on the
tests' S3 server, whose own time is most of what is seen). Every figure is of the median (p50) of single calls.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pkm_pipelines.model.records import Mutation
from pkm_pipelines.settings import StateSettings
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_client import State
from tests.support.s3 import start_server

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 8
ROWS = 2000
VALUE = b"x" * 150


class Sqlite:
    """The peer: one table of keys and values."""

    def __init__(self, folder: str) -> None:
        self.db = sqlite3.connect(f"{folder}/peer.db", timeout=60, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def get(self, key: str) -> bytes | None:
        row = self.db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def put(self, key: str, value: bytes) -> None:
        self.db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    def apply(self, rows: list[Mutation]) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", [(row.key, row.value) for row in rows])
        self.db.execute("COMMIT")

    def get_many(self, keys: list[str]) -> dict[str, bytes]:
        return {key: value for key in keys if (value := self.get(key)) is not None}

    def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        return self.db.execute("SELECT * FROM state WHERE key >= ? ORDER BY key", (prefix,)).fetchall()


def open_store(name: str, url: str, folder: str) -> State | Sqlite:
    if name == "sqlite":
        return Sqlite(folder)
    return State.connect(Location(url), StateSettings(idle_seconds=60), Path(folder) / "run")


def p50_ms(call: Callable[[int], object], seconds: float) -> float:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call(len(times))
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def worker(name: str, url: str, folder: str, seconds: float, number: int) -> None:
    """One of several processes: says how many puts it made, and their p50."""
    store = open_store(name, url, folder)
    store.get("warm")
    print("ready", flush=True)
    sys.stdin.readline()
    count = 0

    def put(turn: int) -> None:
        nonlocal count
        store.put(f"worker:{number}:{turn % 100}", VALUE)
        count += 1

    p50 = p50_ms(put, seconds)
    print(json.dumps([p50, count]), flush=True)


def crowd(name: str, url: str, folder: str, seconds: float) -> tuple[float, float]:
    """p50 in ms and puts per second of all processes together."""
    command = [sys.executable, "-m", "benchmarks.state", "--worker", name, url, folder, str(seconds)]
    processes = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [json.loads(process.communicate()[0]) for process in processes]
    return statistics.median(p50 for p50, _ in answers), sum(count for _, count in answers) / seconds


def measure(name: str, url: str, folder: str, seconds: float) -> dict[str, str]:
    figures: dict[str, str] = {}
    store = open_store(name, url, folder)
    if isinstance(store, State):
        starts: list[float] = []
        for _ in range(5):
            began = time.perf_counter()
            store.get("first")
            starts.append(time.perf_counter() - began)
            store.stop_service()
        figures["start → first answer"] = f"{statistics.median(starts) * 1000:.0f} ms"
    store.put("note:0", VALUE)
    figures["get, p50"] = f"{p50_ms(lambda _: store.get('note:0'), seconds):.3f} ms"
    figures["put (durable), p50"] = f"{p50_ms(lambda turn: store.put(f'note:{turn % 100}', VALUE), seconds):.2f} ms"
    rows = [Mutation(f"batch:{number:05d}", VALUE) for number in range(ROWS)]
    figures[f"apply {ROWS:,}, p50"] = f"{p50_ms(lambda _: store.apply(rows), seconds):.0f} ms"
    keys = [row.key for row in rows]
    figures[f"get_many {ROWS:,}, p50"] = f"{p50_ms(lambda _: store.get_many(keys), seconds):.0f} ms"
    figures[f"scan {ROWS:,}, p50"] = f"{p50_ms(lambda _: len(list(store.scan('batch:'))), seconds):.0f} ms"
    p50, rate = crowd(name, url, folder, seconds)
    figures[f"put, {PROCESSES} processes, p50"] = f"{p50:.1f} ms"
    figures[f"put, {PROCESSES} processes, together"] = f"{rate:,.0f}/s"
    if isinstance(store, State):
        figures["memory of the service"] = f"{_memory_mb(store.info()['pid']):.0f} MB"
        store.stop_service()
    return figures


def _memory_mb(pid: int) -> float:
    import psutil

    return psutil.Process(pid).memory_info().rss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to measure (a temporary folder)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each figure is measured")
    parser.add_argument("--s3", action="store_true", help="also on the S3 server of the tests")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, url, folder, seconds, number = arguments.worker
        worker(name, url, folder, float(seconds), int(number))
        return
    columns: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        local = (Path(folder) / "state").as_uri()
        columns["state, local"] = measure("state", local, folder, arguments.seconds)
        columns["SQLite (WAL, FULL)"] = measure("sqlite", local, folder, arguments.seconds)
        if arguments.s3:
            with start_server() as endpoint:
                os.environ.update(endpoint.environment)
                columns["state, S3"] = measure("state", endpoint.location().url, folder, arguments.seconds)
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name in names:
        print(f"| {name} | " + " | ".join(figures.get(name, "–") for figures in columns.values()) + " |")


if __name__ == "__main__":
    main()
