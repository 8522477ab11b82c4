"""A process that writes to a vector table, for tests of many at once and of one that is killed.

python -m tests.support.vector_writer overlap <url> <writer> <rounds>
python -m tests.support.vector_writer stall <url>
"""

from __future__ import annotations

import sys
import time

from pkm_pipelines.storage.lance import VectorStore
from pkm_pipelines.storage.location import Location
from tests.support.vectors import NAME, SPEC, delta, row

SHARED_KEYS = 6


def overlap(store: VectorStore, writer: int, rounds: int) -> None:
    """Write keys that every other writer writes too, delete some, and move a watermark of one's own."""
    print("ready", flush=True)
    sys.stdin.readline()
    for step in range(rounds):
        rows = [row(f"shared-{i}", rank=writer) for i in range(SHARED_KEYS)]
        rows += [row(f"round-{step}-{i}", rank=writer) for i in range(SHARED_KEYS)]
        rows.append(row(f"own-{writer}-{step}"))
        deletes = [f"own-{writer}-{step - 2}"]
        store.write(delta(rows, deletes=deletes, watermarks={f"input-{writer}": step}))


def stall(store: VectorStore) -> None:
    """Write, but hang after the files are written and before the commit."""

    def hang() -> None:
        print("uncommitted", flush=True)
        time.sleep(600)

    store.write(delta([row("a", rank=2), row("new")], deletes=["b"], watermarks={"input": 2}), lease_check=hang)


def main() -> None:
    store = VectorStore(Location(sys.argv[2]))
    store.ensure(SPEC)
    if sys.argv[1] == "overlap":
        overlap(store, int(sys.argv[3]), int(sys.argv[4]))
    else:
        assert store.count(NAME) > 0
        stall(store)


if __name__ == "__main__":
    main()
