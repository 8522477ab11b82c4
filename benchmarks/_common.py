"""What benchmarks of tables share: a table of any size, its folder, and tables of figures."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pkm_pipelines.model.schema import Column, PartitionField, TableSpec
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.settings import Settings

STATE = TableSpec(
    layer="silver",
    table="things",
    doc="Things by id.",
    kind="state",
    key=("id",),
    partition=(PartitionField("id", "bucket[16]"),),
    sort=("id",),
    columns=(
        Column(1, "id", pa.string(), "The thing", True),
        Column(2, "text", pa.string(), "What it says"),
        Column(3, "value", pa.int64(), "A number"),
    ),
)


def things(numbers: np.ndarray[tuple[int], np.dtype[np.int64]], value: int = 0) -> pa.Table:
    """Rows of the state table, some 100 bytes each; ids are as if they were random, so neighbours are far apart."""
    words = [pl.col("n").hash(seed).cast(pl.String) for seed in range(1, 5)]
    return (
        pl.DataFrame({"n": numbers})
        .select(
            id=pl.col("n").hash(0).cast(pl.String).str.zfill(20),
            text=pl.concat_str(words, separator=" "),
            value=pl.lit(value, pl.Int64),
        )
        .to_arrow()
        .cast(STATE.arrow)
    )


def rows_of(count: int, value: int = 0, step: int = 250_000) -> Iterator[pa.RecordBatch]:
    """The first `count` rows, never more than `step` of them at once."""
    for start in range(0, count, step):
        yield from things(np.arange(start, min(start + step, count)), value).to_batches(max_chunksize=20_000)


def line(*cells: object) -> None:
    """One line of a Markdown table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: str) -> None:
    """The head of one."""
    print()
    line(*cells)
    line(*("---" for _ in cells))


def ms(seconds: float) -> str:
    """A time as one reads it."""
    return f"{seconds * 1000:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


@contextmanager
def stores_in(folder: Path) -> Iterator[Stores]:
    """The lakehouse of a folder, with default settings."""
    with Stores(Settings(home=folder, runtime_dir=folder / "run")) as stores:
        yield stores


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty folder, on a RAM disk where there is one."""
    ram = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="pkm-bench-", dir=ram if ram.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def peak_memory() -> int:
    """The most bytes that this process held, without those of the one that started it (which `getrusage` counts)."""
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith("VmHWM"):
            return int(entry.split()[1]) << 10
    raise OSError("this system does not say how much memory a process held")


def own_process(code: str, *arguments: object, timeout: float | None = None) -> list[float]:
    """The numbers that a process of its own says last; raises `subprocess.TimeoutExpired`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=timeout)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]
