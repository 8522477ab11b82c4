"""Merging into large tables: many rows, beside pyiceberg, DuckDB and Polars; a few rows, at any size of the table.

    python -m benchmarks.merge [many|few …] [--rows 1000000] [--sizes 100000 1000000 5000000]

- `many`: 1,000, 10,000 and 100,000 rows, half of them new, into a table of `--rows` rows in 16 partitions.
  `Table.upsert` is stopped at `--stop` times our time (20). DuckDB and Polars read the same files and write all rows
  again as one Parquet file, with no table, no conflict and no history to mind: the least that rewriting can cost.
- `few`: 100 changed rows, anywhere in tables of several sizes, in each write mode.

Each figure is of a process of its own, with imports made and the rows at hand; memory is the most that the whole
process held.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks._common import STATE, head, line, ms, own_process, rows_of, stores_in, things, workplace
from pkm_pipelines.model.records import Delta
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_manifests import live_files
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES, TableMode

# What a process needs before it begins to merge.
IMPORTS_SECONDS = 5
CHANGED = 100
TIMES = 15
OURS = """
import sys, time
from pathlib import Path
import pyarrow.ipc as ipc
from benchmarks._common import STATE, peak_memory, stores_in
rows = ipc.open_file(sys.argv[2]).read_all()
with stores_in(Path(sys.argv[1])) as stores:
    stores.iceberg.load(STATE.name)
    began = time.perf_counter()
    stores.tables.merge(STATE.name, rows)
    print(time.perf_counter() - began, peak_memory())
"""
UPSERT = """
import sys, time
from pathlib import Path
import pyarrow.ipc as ipc
from benchmarks._common import STATE, peak_memory, stores_in
rows = ipc.open_file(sys.argv[2]).read_all()
with stores_in(Path(sys.argv[1])) as stores:
    table = stores.iceberg.load(STATE.name)
    rows = rows.cast(table.schema().as_arrow())
    began = time.perf_counter()
    table.upsert(rows, join_cols=["id"])
    print(time.perf_counter() - began, peak_memory())
"""
DUCKDB = """
import json, sys, time
import duckdb, pyarrow.ipc as ipc
from benchmarks._common import peak_memory
listed, source, out = sys.argv[1:]
files = json.load(open(listed))
new = ipc.open_file(source).read_all()
connection = duckdb.connect()
connection.execute("SET enable_progress_bar = false")
began = time.perf_counter()
connection.sql(
    f"COPY (SELECT * FROM read_parquet({files}, hive_partitioning = false) ANTI JOIN new USING (id)"
    f" UNION ALL SELECT * FROM new) TO '{out}' (FORMAT parquet, COMPRESSION zstd)"
)
print(time.perf_counter() - began, peak_memory())
"""
POLARS = """
import json, sys, time
import polars as pl, pyarrow.ipc as ipc
from benchmarks._common import peak_memory
listed, source, out = sys.argv[1:]
files = json.load(open(listed))
new = pl.from_arrow(ipc.open_file(source).read_all()).lazy()
began = time.perf_counter()
old = pl.scan_parquet(files, hive_partitioning=False).join(new, on="id", how="anti")
pl.concat([old, new]).sink_parquet(out, compression="zstd")
print(time.perf_counter() - began, peak_memory())
"""


def fill(stores: Stores, rows: int, mode: TableMode = "copy-on-write") -> int:
    """The table, with so many rows, made in a write mode, which decides how files are laid out; the snapshot."""
    stores.tables.ensure(STATE)
    stores.tables.set_mode(STATE.name, mode)
    stores.tables.write(Delta(STATE.name, rows_of(rows), "merge", str(uuid.uuid4())))
    return stores.tables.iceberg.snapshot_id(STATE.name) or 0


def reset(stores: Stores, base: int, mode: TableMode) -> None:
    """The table as it was filled, and set to a write mode."""
    if stores.tables.iceberg.snapshot_id(STATE.name) != base:
        stores.tables.rollback(STATE.name, base)
    stores.tables.set_mode(STATE.name, mode)


def many(folder: Path, options: argparse.Namespace) -> None:
    """Many rows into many."""
    head(f"rows merged into {options.rows:,}, half of them new", "copy-on-write", "merge-on-read", "hybrid",
         "`Table.upsert`", "DuckDB", "Polars", "target")  # fmt: skip
    picked = np.random.default_rng(7)
    listed, source = folder / "files.json", folder / "rows.arrow"
    with stores_in(folder) as stores:
        base = fill(stores, options.rows)
        table = stores.iceberg.load(STATE.name)
        files = [file.path.removeprefix("file://") for file in live_files(table, table.metadata.current_snapshot())]
        listed.write_text(json.dumps(files))
    for size in (1_000, 10_000, 100_000):
        known = picked.choice(options.rows, size // 2, replace=False)
        new = np.arange(options.rows, options.rows + size - size // 2)
        with pa.ipc.new_file(str(source), STATE.arrow) as sink:
            sink.write_table(things(np.concatenate([known, new]), 1))

        def fresh(mode: TableMode) -> None:
            with stores_in(folder) as stores:
                reset(stores, base, mode)

        ours: dict[TableMode, list[float]] = {}
        for mode in TABLE_MODES:
            fresh(mode)
            ours[mode] = own_process(OURS, folder, source)
        fresh("copy-on-write")
        limit = options.stop * ours["copy-on-write"][0]
        try:
            upsert = _figure(own_process(UPSERT, folder, source, timeout=limit + IMPORTS_SECONDS))
        except subprocess.TimeoutExpired:
            upsert = f"stopped at {ms(limit)}"
        except subprocess.CalledProcessError:
            upsert = "crashed"
        duckdb = own_process(DUCKDB, listed, source, folder / "duckdb.parquet")
        polars = own_process(POLARS, listed, source, folder / "polars.parquet")
        line(f"{size:,}", *(_figure(ours[mode]) for mode in TABLE_MODES), upsert, _figure(duckdb), _figure(polars),
             "10 s, 1 GiB, 30 × upsert" if size == 100_000 else "")  # fmt: skip


def few(folder: Path, options: argparse.Namespace) -> None:
    """A few rows at any size."""
    sizes = sorted(options.sizes)
    head(f"{CHANGED} changed rows, median of {TIMES}", *(f"into {size:,}" for size in sizes), "largest / smallest",
         "target")  # fmt: skip
    for mode in TABLE_MODES:
        with ExitStack() as opened:
            tables = [opened.enter_context(stores_in(folder / f"{size}-{mode}")) for size in sizes]
            for stores, size in zip(tables, sizes, strict=True):
                fill(stores, size, mode)
            times = _merge_few(tables, sizes)
        target = "≤ 1.5" if mode == "merge-on-read" else ""
        line(mode, *(ms(seconds) for seconds in times), f"{times[-1] / times[0]:.2f}", target)


def _merge_few(tables: Sequence[Stores], sizes: Sequence[int]) -> list[float]:
    """The median for each size. They take turns, so what else the machine does falls on all alike."""
    picked = np.random.default_rng(11)
    times: list[list[float]] = [[] for _ in sizes]
    for number in range(TIMES + 1):
        for stores, size, taken in zip(tables, sizes, times, strict=True):
            rows = things(picked.choice(size, CHANGED, replace=False), number + 1)
            began = time.perf_counter()
            stores.tables.merge(STATE.name, rows)
            taken.append(time.perf_counter() - began)
    # The first reads manifests and footers that the others find in memory.
    return [statistics.median(taken[1:]) for taken in times]


def _figure(figures: list[float]) -> str:
    seconds, memory = figures
    return f"{ms(seconds)}, {memory / 1e6:,.0f} MB"


PARTS: dict[str, Callable[[Path, Any], None]] = {"many": many, "few": few}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure; everything by default")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table that many are merged into")
    parser.add_argument("--stop", type=float, default=20, help="so many times our time are enough for `Table.upsert`")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000], help="for a few rows")
    options = parser.parse_args()
    for part in options.parts or PARTS:
        with workplace() as folder:
            PARTS[part](folder, options)


if __name__ == "__main__":
    main()
