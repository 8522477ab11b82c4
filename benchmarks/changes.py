"""Reading what changed in tables of any size, in each write mode.

    python -m benchmarks.changes [--sizes 100000 1000000 5000000]

1,000 changed rows are merged into the table; then `changes` of that one commit is read, before and after images of
each row. Two ways in which rows change: anywhere in the table, and next to each other in one partition, as the rows of
one note do. The peer has no changelog: it compares two scans (Polars, anti-joins of both snapshots on all columns).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks._common import STATE, head, line, ms, stores_in, things, workplace
from benchmarks.merge import fill
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES, TableMode

CHANGED = 1_000
TIMES = 5


def measure(folder: Path, sizes: list[int]) -> None:
    """All of it."""
    head(f"changes of one commit of {CHANGED:,} rows, median of {TIMES}", *(f"of {size:,}" for size in sizes),
         "largest / smallest", "target")  # fmt: skip
    found: dict[TableMode, list[float]] = {mode: [] for mode in TABLE_MODES}
    peer: list[float] = []
    for size in sizes:
        for mode in TABLE_MODES:
            with stores_in(folder / f"{size}-{mode}") as stores:
                fill(stores, size, mode)
                found[mode].append(_changes(stores, size))
                if mode == TABLE_MODES[-1]:
                    peer.append(_compare(stores))
    for mode, times in found.items():
        target = "≤ 2" if mode == "merge-on-read" else ""
        line(mode, *(ms(seconds) for seconds in times), f"{times[-1] / times[0]:.2f}", target)
    line("two scans compared by Polars", *(ms(seconds) for seconds in peer), f"{peer[-1] / peer[0]:.2f}", "")


def _changes(stores: Stores, size: int) -> float:
    picked = np.random.default_rng(11)
    times: list[float] = []
    for number in range(TIMES):
        since = stores.tables.iceberg.snapshot_id(STATE.name)
        stores.tables.merge(STATE.name, things(picked.choice(size, CHANGED, replace=False), number + 1))
        began = time.perf_counter()
        rows = sum(batch.num_rows for batch in stores.tables.changes(STATE.name, since))
        times.append(time.perf_counter() - began)
        assert rows == 2 * CHANGED
    return statistics.median(times)


def _compare(stores: Stores) -> float:
    newest, older = [version.snapshot_id for version in stores.tables.history(STATE.name)[:2]]
    began = time.perf_counter()
    one, other = (stores.tables.lazy(STATE.name, snapshot_id=snapshot).collect() for snapshot in (older, newest))
    rows = sum(len(left.join(right, on=left.columns, how="anti")) for left, right in ((one, other), (other, one)))
    assert rows == 2 * CHANGED
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000], help="rows of tables")
    with workplace() as folder:
        measure(folder, sorted(parser.parse_args().sizes))


if __name__ == "__main__":
    main()
