"""Writing and following tables: merges, appends, commits and changes, beside pyiceberg's own.

    python -m benchmarks.tables [--notes 10000] [--rows 100000] [--warehouse URL]

Each line is one operation; the peer does the same on a table of the same schema, partitions and properties, in the
same run. `Table.upsert` runs in a process of its own, which is ended at twenty times our time. By default the warehouse
lies on a RAM disk where there is one; an `s3://` URL measures an endpoint (`AWS_*` as usual).
"""

from __future__ import annotations

import argparse
import datetime as dt
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from pyiceberg.expressions import EqualTo

from pkm_pipelines.model.records import Delta, WriteMode
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import EXTRACTED_CONCEPTS, KNOWLEDGE_GRAPH, NOTE_METRICS, PROCESSED_NOTES, RAW_NOTES
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.location import Location
from pkm_pipelines.tables.manager import TableManager

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
STOP_FACTOR = 20
UPSERT = """
import sys, time
import pyarrow.ipc as ipc
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.location import Location
warehouse, catalog, name, key, rows = sys.argv[1:]
table = IcebergStore(Location(warehouse), catalog).load(name)
source = ipc.open_file(rows).read_all().cast(table.schema().as_arrow())
print("ready", flush=True)
sys.stdin.readline()
began = time.perf_counter()
result = table.upsert(source, join_cols=key.split(","))
print(time.perf_counter() - began, flush=True)
"""


@dataclass
class Figures:
    """The table that is printed."""

    rows: list[str]

    def add(self, what: str, seconds: float, peer: str = "", target: str = "") -> None:
        """One operation: our time, the peer's, and the target."""
        line = f"| {what:<58} | {_time(seconds):>9} | {peer:>28} | {target:>8} |"
        print(line, flush=True)
        self.rows.append(line)


class Bench:
    """A warehouse and the figures measured in it."""

    def __init__(self, warehouse: str, catalog: str) -> None:
        self.warehouse, self.catalog = warehouse, catalog
        self.tables = TableManager(IcebergStore(Location(warehouse), catalog))
        self.figures = Figures([])
        self.random = random.Random(5)
        self.words = ["".join(self.random.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(5000)]

    def write(self, spec: TableSpec, rows: pa.Table, mode: WriteMode = "merge", **options: Any) -> float:
        """Seconds of one write."""
        delta = Delta(spec.name, rows.to_batches(max_chunksize=500), mode, str(uuid.uuid4()), **options)
        began = time.perf_counter()
        self.tables.write(delta)
        return time.perf_counter() - began

    def text(self, size: int) -> str:
        """About `size` characters of words."""
        return " ".join(self.random.choices(self.words, k=size // 6))

    def raw(self, numbers: Sequence[int], lsn: int = 0) -> pa.Table:
        """Changes of notes of some 5,000 characters."""
        return _rows(
            RAW_NOTES,
            (
                {
                    "change_id": str(uuid.uuid4()),
                    "lsn": lsn + number,
                    "change_type": "INSERT",
                    "source": "vault",
                    "note_id": _id(number),
                    "path": f"folder {number % 50}/{number}.md",
                    "content": self.text(5000),
                    "ordinal": 0,
                    "changed_at": NOW + dt.timedelta(seconds=lsn),
                    "ingested_at": NOW,
                    "partition_date": NOW.date(),
                }
                for number in numbers
            ),
        )

    def notes(self, raw: pa.Table) -> pa.Table:
        """What parsing makes of them, in size."""
        heading = {"level": 2, "text": "A heading", "anchor": "a-heading", "start": 0, "end": 9}
        link = {"kind": "link", "form": "wikilink", "target": "other note", "start": 1, "end": 12}
        shared = {"headings": [heading] * 6, "links": [link] * 8, "tags": ["one", "two"], "word_count": 800}
        kept = ["note_id", "source", "path", "content", "change_id", "changed_at", "ordinal", "lsn"]
        return _rows(
            PROCESSED_NOTES, ({**row, **shared, "text": row["content"]} for row in raw.select(kept).to_pylist())
        )

    def concepts(self, numbers: Sequence[int], per_note: int = 15) -> pa.Table:
        """Concepts of notes."""
        return _rows(
            EXTRACTED_CONCEPTS,
            (
                {
                    "note_id": _id(number),
                    "concept": f"{word} {position}",
                    "label": word,
                    "kind": "phrase",
                    "score": 0.5,
                    "spans": [{"start": 1, "end": 9}] * 2,
                    "language": "en",
                }
                for number in numbers
                for position, word in enumerate(self.random.choices(self.words, k=per_note))
            ),
        )

    def edges(self, numbers: Sequence[int], per_note: int = 10, display: str = "") -> pa.Table:
        """Edges of notes."""
        return _rows(
            KNOWLEDGE_GRAPH,
            (
                {
                    "edge_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{number}/{position}")),
                    "src": _id(number),
                    "kind": "link",
                    "raw_target": f"note {position}",
                    "ordinal": 0,
                    "target_key": f"note {position}",
                    "status": "resolved",
                    "dst": _id(position),
                    "display": display,
                    "start": position,
                }
                for number in numbers
                for position in range(per_note)
            ),
        )

    def metrics(self, numbers: Sequence[int], words: int = 800) -> pa.Table:
        """Metrics of notes."""
        return _rows(
            NOTE_METRICS,
            (
                {
                    "note_id": _id(number),
                    "source": "vault",
                    "path": f"{number}.md",
                    "title": f"Note {number}",
                    "word_count": words,
                    "pagerank": 1.0,
                    "quality": 0.5,
                    "changed_at": NOW,
                }
                for number in numbers
            ),
        )


def _rows(spec: TableSpec, rows: Any) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=spec.arrow)


def _id(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(number)))


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _median(measure: Callable[[], float], times: int) -> float:
    return statistics.median(measure() for _ in range(times))


def pipeline(bench: Bench, count: int) -> None:
    """The table work of a pipeline over `count` notes: cold, and after an edit of one."""
    numbers = range(count)
    batches = [bench.raw(numbers[start : start + 2000]) for start in range(0, count, 2000)]
    appends = [bench.write(RAW_NOTES, batch, "append") for batch in batches]
    peer = _peer_append(bench, batches)
    bench.figures.add(f"append {len(batches[0]):,} notes of 5 KB", statistics.median(appends), peer)
    total = sum(appends)
    notes = [bench.notes(batch) for batch in batches]
    total += sum(bench.write(PROCESSED_NOTES, part) for part in notes)
    del notes
    for spec, rows in (
        (EXTRACTED_CONCEPTS, bench.concepts(numbers)),
        (KNOWLEDGE_GRAPH, bench.edges(numbers)),
        (NOTE_METRICS, bench.metrics(numbers)),
    ):
        total += bench.write(spec, rows)
    began = time.perf_counter()
    for spec in (RAW_NOTES, PROCESSED_NOTES):
        assert sum(batch.num_rows for batch in bench.tables.read(spec.name, columns=["note_id", "content"])) == count
    total += time.perf_counter() - began
    bench.figures.add(f"five tables of {count:,} notes, cold, with reading back", total, target="< 30 s")

    lsn = count

    def edit() -> float:
        """Tables that a changed note touches: write each, and read its change for the next."""
        nonlocal lsn
        lsn += 1
        number = bench.random.randrange(count)
        raw = bench.raw([number], lsn)
        note, concepts = bench.notes(raw), bench.concepts([number])
        edges, metrics = bench.edges([number], display=str(lsn)), bench.metrics([number], lsn)
        began = time.perf_counter()
        since = {spec: bench.tables.iceberg.snapshot_id(spec.name) for spec in (RAW_NOTES, PROCESSED_NOTES)}
        bench.write(RAW_NOTES, raw, "append")
        assert bench.tables.added(RAW_NOTES.name, since[RAW_NOTES]).read_all().num_rows == 1
        at = {RAW_NOTES.name: bench.tables.iceberg.snapshot_id(RAW_NOTES.name) or 0}
        bench.write(PROCESSED_NOTES, note, watermarks=at)
        assert bench.tables.diff(PROCESSED_NOTES.name, since[PROCESSED_NOTES]).read_all().num_rows == 2
        at = {PROCESSED_NOTES.name: bench.tables.iceberg.snapshot_id(PROCESSED_NOTES.name) or 0}
        ids = (_id(number),)
        bench.write(EXTRACTED_CONCEPTS, concepts, replace_slice=("note_id", ids), watermarks=at)
        bench.write(KNOWLEDGE_GRAPH, edges, replace_slice=("src", ids), watermarks=at)
        bench.write(NOTE_METRICS, metrics, watermarks=at)
        return time.perf_counter() - began

    bench.figures.add("one note edited: five tables, watermarks and pins", _median(edit, 9), target="< 2 s")


def latency(bench: Bench, count: int) -> None:
    """One row at a time."""
    state = {"lsn": 10 * count}

    def merge() -> float:
        state["lsn"] += 1
        return bench.write(PROCESSED_NOTES, bench.notes(bench.raw([bench.random.randrange(count)], state["lsn"])))

    def insert() -> float:
        state["lsn"] += 1
        return bench.write(PROCESSED_NOTES, bench.notes(bench.raw([state["lsn"]])))

    def append() -> float:
        return bench.write(RAW_NOTES, bench.raw([1]), "append")

    def plain_append() -> float:
        table = bench.tables.iceberg.load(RAW_NOTES.name)
        row = bench.raw([1]).cast(table.schema().as_arrow())
        began = time.perf_counter()
        bench.tables.iceberg.load(RAW_NOTES.name).append(row)
        return time.perf_counter() - began

    def plain_overwrite() -> float:
        table = bench.tables.iceberg.load(PROCESSED_NOTES.name)
        row = bench.notes(bench.raw([bench.random.randrange(count)])).cast(table.schema().as_arrow())
        began = time.perf_counter()
        table = bench.tables.iceberg.load(PROCESSED_NOTES.name)
        table.overwrite(row, EqualTo("note_id", row["note_id"][0].as_py()))
        return time.perf_counter() - began

    merged = _median(merge, 25)
    peer = f"{_time(_median(plain_overwrite, 7))} Table.overwrite"
    bench.figures.add(f"change one of {count:,} notes, 16 buckets", merged, peer, "< 200 ms")
    bench.figures.add("add one note", _median(insert, 25))
    appended = _median(append, 25)
    bench.figures.add("append one change", appended, f"{_time(_median(plain_append, 15))} Table.append")

    def pin() -> float:
        current = bench.tables.iceberg.snapshot_id(RAW_NOTES.name) or 0
        name = f"bench.{uuid.uuid4()}"
        began = time.perf_counter()
        bench.tables.pin(RAW_NOTES.name, name, current=None, upcoming=current)
        return time.perf_counter() - began

    bench.figures.add("pin the input of a consumer (one metadata commit)", _median(pin, 9))


def merges(bench: Bench, count: int) -> None:
    """Many rows into many, half of them new, beside `Table.upsert`."""
    per_note = 10
    known = range(count // per_note)
    for size in (1000, 10_000):
        ours = replace(KNOWLEDGE_GRAPH, table=f"graph_{size}")
        theirs = replace(KNOWLEDGE_GRAPH, table=f"graph_{size}_upsert")
        rows = bench.edges(known, per_note)
        for spec in (ours, theirs):
            bench.tables.ensure(spec)
            bench.write(spec, rows)
        notes = size // per_note // 2
        new = range(len(known), len(known) + notes)
        source = bench.edges([*bench.random.sample(known, notes), *new], per_note, "changed")
        before = psutil.Process().memory_info().rss
        seconds = bench.write(ours, source)
        grown = (psutil.Process().memory_info().rss - before) >> 20
        peer = _upsert(bench, theirs, source, STOP_FACTOR * seconds)
        target = f" (+{max(grown, 0)} MB)"
        bench.figures.add(f"merge {size:,} edges into {count:,}, half of them new{target}", seconds, peer)
    since = bench.tables.history(f"silver.graph_{10_000}")[1].snapshot_id
    began = time.perf_counter()
    changed = bench.tables.diff("silver.graph_10000", since).read_all().num_rows
    bench.figures.add(f"read those changes back ({changed:,} rows of a changelog)", time.perf_counter() - began)


def _upsert(bench: Bench, spec: TableSpec, rows: pa.Table, limit: float) -> str:
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        with pa.ipc.new_file(file.name, rows.schema) as sink:
            sink.write_table(rows)
        arguments = [bench.warehouse, bench.catalog, spec.name, ",".join(spec.key), file.name]
        with subprocess.Popen(
            [sys.executable, "-c", UPSERT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                out, _ = process.communicate(b"go\n", timeout=limit)
            except subprocess.TimeoutExpired:
                process.kill()
                return f"> {_time(limit)} Table.upsert"
            return f"{_time(float(out))} Table.upsert" if out else "crashed: Table.upsert"


def _peer_append(bench: Bench, batches: Sequence[pa.Table]) -> str:
    spec = replace(RAW_NOTES, table="raw_notes_plain")
    bench.tables.ensure(spec)
    times: list[float] = []
    for rows in batches:
        table = bench.tables.iceberg.load(spec.name)
        large = rows.cast(table.schema().as_arrow())
        began = time.perf_counter()
        bench.tables.iceberg.load(spec.name).append(large)
        times.append(time.perf_counter() - began)
    return f"{_time(statistics.median(times))} Table.append"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--notes", type=int, default=10_000, help="notes of the pipeline's tables")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the table that is merged into")
    parser.add_argument("--warehouse", help="URL of an empty warehouse")
    options = parser.parse_args()
    ram = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="pkm-bench-", dir=ram if ram.is_dir() else None))
    try:
        bench = Bench(options.warehouse or (folder / "warehouse").as_uri(), f"sqlite:///{folder / 'catalog.db'}")
        print(f"| {'operation':<58} | {'ours':>9} | {'peer':>28} | {'target':>8} |")
        print(f"|{'-' * 60}|{'-' * 10}:|{'-' * 29}:|{'-' * 9}:|")
        pipeline(bench, options.notes)
        latency(bench, options.notes)
        merges(bench, options.rows)
        peak = psutil.Process().memory_info().rss >> 20
        print(f"\n{peak} MB of memory at the end; the rows that are written are made in this process too.")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
