"""Writing what an operation yields: under the table's lease, one commit after the other.

The lease is taken before the first delta is asked for, so what an operation reads to decide what to write
cannot be changed by another writer in between. A second writer of the same table waits its turn.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from pkm_pipelines.model.records import CommitResult, Delta
from pkm_pipelines.operations.stores import Stores

# Waiting for another run of the same table; longer than any sane run, shorter than for ever.
WAIT_SECONDS = 6 * 3600


@dataclass(frozen=True)
class Deltas:
    """What an operation yields, as a value that an asset can return: Dagster takes a bare iterator for events."""

    parts: Iterable[Delta]


@dataclass
class Written:
    """What writing to one table did, all commits together."""

    table: str
    commits: int = 0
    rows_added: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    snapshot_id: int | None = None
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Rows added, updated or deleted."""
        return self.rows_added + self.rows_updated + self.rows_deleted

    def count(self, result: CommitResult) -> None:
        """Add one commit."""
        self.commits += result.written
        self.rows_added += result.rows_added
        self.rows_updated += result.rows_updated
        self.rows_deleted += result.rows_deleted
        self.snapshot_id = result.snapshot_id


def write_all(stores: Stores, table: str, deltas: Iterable[Delta], run_id: str = "") -> Written:
    """Commit each delta of `table` in turn, as `run_id`.

    Raises `LeaseHeldError` if another writer holds the table for longer than `WAIT_SECONDS`, and
    `LeaseLostError` if this one lost it; what was committed before stays.
    """
    started = time.monotonic()
    written = Written(table)
    ttl = stores.settings.lease_seconds
    with stores.state.acquire(f"table:{table}", ttl_seconds=ttl, wait_seconds=WAIT_SECONDS) as lease:
        for delta in deltas:
            if run_id:
                delta.properties = {**delta.properties, "pkm.run-id": run_id}
            if delta.is_vectors:
                result = stores.vectors.write(delta, lease_check=lease.check)
            else:
                result = stores.tables.write(delta, lease=lease)
            if delta.committed is not None:
                delta.committed(result)
            written.count(result)
    written.seconds = time.monotonic() - started
    return written
