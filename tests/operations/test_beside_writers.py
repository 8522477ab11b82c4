"""Maintenance that never stops, beside four processes that never stop writing."""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_schema import TableMode
from tests.support.iceberg import LOG, STATE, Place, contents
from tests.support.maintenance import assert_whole, run, stores_at
from tests.support.table_writer import OWN_ROWS, go, start

SECONDS = {1: 6, 3: 60, 20: 600}
OPERATIONS = ("compact", "manifests", "stats", "expire", "orphans")
WRITERS = [f"w{number}" for number in range(4)]
# The life of the writers is looked at in so many parts.
PARTS = 3


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("place", "mode"), [("sqlite", "hybrid"), ("postgres", "merge-on-read")], indirect=["place"])
def test_nothing_is_lost_and_nobody_starves(place: Place, mode: TableMode, work: Path, budget: int) -> None:
    stores = stores_at(place, work, keep_snapshots=5, file_grace_minutes=60, orphan_age_hours=1)
    for spec in (STATE, LOG):
        stores.tables.ensure(spec)
    stores.tables.set_mode(STATE.name, mode)
    processes = [start(place, "write_for", name, SECONDS[budget]) for name in WRITERS]
    done = Counter[str]()
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(go, *processes, timeout=SECONDS[budget] + 120)
        for operation, spec in itertools.cycle(itertools.product(OPERATIONS, (STATE, LOG))):
            if writing.done():
                break
            done[operation] += maintain_and_compare(stores, operation, spec)
        times = dict(zip(WRITERS, writing.result(), strict=True))

    assert done.keys() >= {"compact", "manifests", "expire"}, f"there was nothing to do: {done}"
    width = SECONDS[budget] / PARTS
    for name, own in times.items():
        lively = {int((moment - own[0]) / width) for moment in own}
        assert lively >= set(range(PARTS)), f"{name} stood still: {own}"
    assert min(map(len, times.values())) * 4 >= max(map(len, times.values())), "one of them was kept waiting"
    assert {id: row["value"] for id, row in contents(stores.tables, STATE).items()} == {
        f"{name}-{number}": len(own) for name, own in times.items() for number in range(OWN_ROWS)
    }
    assert contents(stores.tables, LOG).keys() == {
        f"{name}-{turn}" for name, own in times.items() for turn in range(1, len(own) + 1)
    }
    for spec in (STATE, LOG):
        assert_whole(stores.iceberg.load(spec.name))


def maintain_and_compare(stores: Stores, operation: str, spec: TableSpec) -> int:
    """Carry out an operation; what a snapshot held before it, it holds afterwards. Whether there was anything to do."""
    now = stores.iceberg.snapshot_id(spec.name)
    if now is None:
        return 0
    stores.tables.tag(spec.name, "kept", now)
    before = contents(stores.tables, spec, snapshot_id=now)
    report = run(stores, operation, spec.name)
    assert contents(stores.tables, spec, snapshot_id=now) == before
    stores.tables.untag(spec.name, "kept")
    return bool(report.done)
