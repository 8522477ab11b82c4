"""Maintenance: that commits stay fast with it, how fast files are packed, and how fast they are read afterwards.

    python -m benchmarks.maintenance [latency|compact|scan …] [--commits 5000] [--files 2000] [--rows 2000000]

- `latency`: one-row commits with the default maintenance, which runs what is due every so often, to a log and to a
  state table; beside pyiceberg's own append, which is stopped after a minute.
- `compact`: many small files packed, in a process of its own; beside DuckDB reading and rewriting them.
- `scan`: reading the table after maintenance, beside raw Parquet that DuckDB wrote of the same rows in the same order.

By default the warehouse lies on a RAM disk where there is one.
"""

from __future__ import annotations

import argparse
import datetime as dt
import random
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from benchmarks._common import STATE, head, line, ms, own_process, stores_in, things, workplace
from benchmarks.merge import fill
from pkm_pipelines.model.records import Delta, WriteMode
from pkm_pipelines.model.schema import TIMESTAMP, Column, PartitionField, TableSpec
from pkm_pipelines.operations.debt import maintain_due
from pkm_pipelines.operations.maintenance import maintain
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_commit import commit
from pkm_pipelines.storage.iceberg_snapshot import Writes
from pkm_pipelines.storage.iceberg_writer import FileWriter

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
EVERY = 50
PEER_SECONDS = 60

LOG = TableSpec(
    layer="bronze",
    table="events",
    doc="What happened.",
    kind="log",
    key=("change_id",),
    partition=(PartitionField("day", "month"),),
    sort=("changed",),
    columns=(
        Column(1, "change_id", pa.string(), "The change", True),
        Column(2, "text", pa.string(), "What it says"),
        Column(3, "value", pa.int64(), "A number"),
        Column(4, "changed", TIMESTAMP, "When", True),
        Column(5, "day", pa.date32(), "Which day", True),
    ),
)


def events(numbers: Sequence[int]) -> pa.Table:
    """Rows of the log, some 200 bytes each."""
    picked = random.Random(numbers[0])
    words = ["".join(picked.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(500)]
    return pa.table(
        {
            "change_id": [str(uuid.UUID(int=picked.getrandbits(128))) for _ in numbers],
            "text": [" ".join(picked.choices(words, k=24)) for _ in numbers],
            "value": list(numbers),
            "changed": [NOW + dt.timedelta(seconds=number) for number in numbers],
            "day": [NOW.date()] * len(numbers),
        },
        schema=LOG.arrow,
    )


def write(stores: Stores, spec: TableSpec, rows: pa.Table, mode: WriteMode) -> float:
    """Seconds of one commit."""
    began = time.perf_counter()
    stores.tables.write(Delta(spec.name, rows.to_batches(), mode, str(uuid.uuid4())))
    return time.perf_counter() - began


def latency(folder: Path, options: argparse.Namespace) -> None:
    """One row at a time, for long."""
    head("5,000 one-row commits" if options.commits == 5000 else f"{options.commits:,} one-row commits",
         "first 500, p50", "last 500, p50", "ratio", "slowest", "maintenance", "target")  # fmt: skip
    with stores_in(folder / "latency") as stores:
        for spec in (LOG, STATE):
            stores.tables.ensure(spec)
        write(stores, STATE, things(np.arange(10_000)), "merge")
        picked = random.Random(3)
        _loop(stores, LOG, options.commits, lambda n: write(stores, LOG, events([n]), "append"), "append to a log")
        _loop(
            stores,
            STATE,
            options.commits,
            lambda n: write(stores, STATE, things(np.array([picked.randrange(10_000)]), n + 1), "merge"),
            "change one of 10,000 rows in 16 buckets",
        )
        plain = replace(LOG, table="plain")
        stores.tables.ensure(plain)
        times: list[float] = []
        began = time.perf_counter()
        while time.perf_counter() - began < PEER_SECONDS and len(times) < options.commits:
            rows = events([len(times)])
            started = time.perf_counter()
            table = stores.iceberg.load(plain.name)
            table.append(rows.cast(table.schema().as_arrow()))
            times.append(time.perf_counter() - started)
        part = min(500, len(times) // 4)
        first, last = statistics.median(times[:part]), statistics.median(times[-part:])
        line(f"pyiceberg `Table.append`, no maintenance, stopped at {len(times):,} commits, first and last {part}",
             ms(first), ms(last), f"{last / first:.2f}", ms(max(times)), "", "")  # fmt: skip


def _loop(stores: Stores, spec: TableSpec, commits: int, commit: Callable[[int], float], what: str) -> None:
    times: list[float] = []
    spent: list[float] = []
    for number in range(commits):
        times.append(commit(number))
        if number % EVERY == EVERY - 1:
            began = time.perf_counter()
            maintain_due(stores, spec.name)
            spent.append(time.perf_counter() - began)
    part = min(500, commits // 4)
    first, last = statistics.median(times[:part]), statistics.median(times[-part:])
    share = sum(spent) / commits
    line(what, ms(first), ms(last), f"{last / first:.2f}", ms(max(times)),
         f"{ms(share)} a commit, {ms(max(spent))} at most", "≤ 1.3")  # fmt: skip


COMPACT = """
import sys, time
from pathlib import Path
from benchmarks._common import peak_memory, stores_in
from benchmarks.maintenance import LOG
from pkm_pipelines.operations.maintenance import maintain
with stores_in(Path(sys.argv[1])) as stores:
    stores.iceberg.load(LOG.name)
    before = peak_memory()
    began = time.perf_counter()
    report = maintain(stores, "compact", LOG.name)
    seconds = time.perf_counter() - began
    print(seconds, peak_memory() - before, report.details["files"])
"""
REWRITE = """
import sys, time
import duckdb
from benchmarks._common import peak_memory
glob, out, order = sys.argv[1:]
connection = duckdb.connect()
connection.execute("SET enable_progress_bar = false")
before = peak_memory()
began = time.perf_counter()
connection.sql(f"COPY (SELECT * FROM read_parquet('{glob}') {order}) TO '{out}' (FORMAT parquet, COMPRESSION zstd)")
print(time.perf_counter() - began, peak_memory() - before, 0)
"""
SCAN = """
import sys, time
how, where, query = sys.argv[1:]
if how == "iceberg":
    import duckdb
    from pkm_pipelines.query.sql import load_extension
    connection = duckdb.connect()
    for extension in ("avro", "iceberg"):
        load_extension(connection, extension)
    source = f"iceberg_scan('{where}')"
else:
    import duckdb
    connection = duckdb.connect()
    source = f"read_parquet('{where}')"
times = []
for _ in range(7):
    began = time.perf_counter()
    connection.sql(query.format(source=source)).fetchall()
    times.append(time.perf_counter() - began)
print(sorted(times)[3], 0, 0)
"""


def small_files(stores: Stores, files: int, rows: int) -> int:
    """A log of so many small files, of one commit each but by the plain writer; returns their bytes."""
    stores.tables.ensure(LOG)
    each = rows // files
    writer = FileWriter(stores.iceberg.load(LOG.name))
    added: list[DataFile] = []
    for number in range(files):
        # Neighbours overlap in time, as what several sources report does.
        numbers = range(number * each // 2, number * each // 2 + each)
        for partition, part in writer.split(writer.conform(events(numbers))):
            added += writer.write(partition, part)

    class Files:
        paths = tuple(file.file_path for file in added)

        def __call__(self, table: Table) -> Writes:
            return Writes(added=added, rows_added=rows)

    commit(stores.iceberg, LOG.name, Files(), op_id=str(uuid.uuid4()))
    return sum(file.file_size_in_bytes for file in added)


def compact(folder: Path, options: argparse.Namespace) -> None:
    """Small files into large ones."""
    home = folder / "compact"
    with stores_in(home) as stores:
        size = small_files(stores, options.files, options.rows) / 1e6
    glob = f"{home}/.pkm/warehouse/bronze/events/data/*/*.parquet"
    in_order = own_process(REWRITE, glob, str(folder / "sorted.parquet"), "ORDER BY changed")
    as_is = own_process(REWRITE, glob, str(folder / "plain.parquet"), "")
    ours = own_process(COMPACT, str(home))
    head(f"{ours[2]:,.0f} files of {size:,.0f} MB packed", "seconds", "MB/s", "peak memory above the start", "target")
    line("compaction, sorted, committed", *_speed(ours, size), "no whole-table read")
    line("DuckDB, read and rewritten with `ORDER BY`", *_speed(in_order, size), "")
    line("DuckDB, read and rewritten as it comes", *_speed(as_is, size), "")


def scan(folder: Path, options: argparse.Namespace) -> None:
    """Reading what was packed, beside Parquet that DuckDB wrote of the same rows."""
    home = folder / "compact"
    if not home.exists():
        compact(folder, options)
    with stores_in(home) as stores:
        for operation in ("manifests", "expire"):
            maintain(stores, operation, LOG.name)
        log = stores.iceberg.load(LOG.name).metadata_location
    head("scan after maintenance, DuckDB, median of 7", "the table", "raw Parquet, sorted", "ratio", "target")
    _beside("log", log, folder / "sorted.parquet", (
        ("all columns", "SELECT count(*), sum(length(text)), max(change_id), sum(value), max(changed) FROM {source}"),
        ("a number", "SELECT sum(value) FROM {source}"),
        ("a tenth by time", "SELECT count(*), sum(length(text)) FROM {source} WHERE changed < '2026-11-02'"),
    ))  # fmt: skip
    for mode in ("copy-on-write", "merge-on-read"):
        home, raw = folder / mode, folder / f"{mode}.parquet"
        with stores_in(home) as stores:
            fill(stores, options.rows, mode)
            maintain(stores, "compact", STATE.name)
            table = stores.iceberg.load(STATE.name).metadata_location
        own_process(REWRITE, f"{home}/.pkm/warehouse/silver/things/data/*/*.parquet", str(raw), "ORDER BY id")
        _beside(f"state, {mode}", table, raw, (
            ("all columns", "SELECT count(*), sum(length(text)), max(id), sum(value) FROM {source}"),
            ("a number", "SELECT sum(value) FROM {source}"),
            ("a tenth by key", "SELECT count(*), sum(length(text)) FROM {source} WHERE id < '02'"),
        ))  # fmt: skip


def _beside(name: str, table: str, raw: Path, queries: Sequence[tuple[str, str]]) -> None:
    for what, query in queries:
        ours = own_process(SCAN, "iceberg", table, query)[0]
        theirs = own_process(SCAN, "raw", str(raw), query)[0]
        line(f"{name}: {what}", ms(ours), ms(theirs), f"{ours / theirs:.2f}", "≤ 1.2")


def _speed(figures: Sequence[float], size: float) -> tuple[str, str, str]:
    seconds, memory, _ = figures
    return f"{seconds:.1f}", f"{size / seconds:,.0f}", f"{memory / 1e6:,.0f} MB"


PARTS: dict[str, Callable[[Path, Any], None]] = {"latency": latency, "compact": compact, "scan": scan}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure; everything by default")
    parser.add_argument("--commits", type=int, default=5000, help="one-row commits")
    parser.add_argument("--files", type=int, default=2000, help="small files to pack")
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows in them")
    options = parser.parse_args()
    with workplace() as folder:
        for part in options.parts or PARTS:
            PARTS[part](folder, options)


if __name__ == "__main__":
    main()
