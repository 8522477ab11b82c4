"""How often hybrid tables are read between two merges: counted, so that the rule of `cost.py` goes by what happens.

A process counts its own reads of the present state of a table and adds them, with those of all others, to one number
in the state. Each write that asks for them notes in its snapshot's summary how far that number was, so the reads since
the last merge are a difference, right also after a compaction, a rollback or a write that failed. What is expected of
the next time is a moving average of such differences.

A read counts by the share of the data files that it opened: one that looks at a hundredth of a table pays for a
hundredth of its deletes. Reads by other engines are not seen; whoever has many of them sets `pkm.reads-per-write`, and
nothing is counted then. Counts are a hint: those of a process that is killed are lost, and nothing else is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyiceberg.table import Table

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import StateUnavailableError
from pkm_pipelines.storage.iceberg import Scan
from pkm_pipelines.storage.iceberg_history import current_ancestors
from pkm_pipelines.storage.iceberg_schema import reads_per_write_of, write_mode_of
from pkm_pipelines.tables.registry import Registry

# In the summary of a snapshot: reads of the table ever, and for each write, when it was planned.
READS = "pkm.reads"
EXPECTED = "pkm.reads-expected"
# What a table is thought to be read for each write before anything was counted.
FIRST_GUESS = 1.0
# Weight of the newest count. On simulated days a quarter costs within 15 % of knowing (`tests/tables/test_cost.py`).
WEIGHT = 0.25
# How long a process that only reads keeps its counts to itself.
FLUSH_SECONDS = 30.0

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reads:
    """What is known of the reads of a table when a write to it is planned.

    `per_write` is what to expect between this write and the next. `since` are those counted since the last merge and
    `total` all that were ever counted; None where nothing is counted.
    """

    per_write: float = FIRST_GUESS
    since: float | None = None
    total: float | None = None

    @property
    def properties(self) -> dict[str, str]:
        """What the snapshot of the write has to say for the next one."""
        return {} if self.total is None else {READS: f"{self.total:.3f}", EXPECTED: f"{self.per_write:.4g}"}

    def __str__(self) -> str:
        expected = f"{self.per_write:.3g} reads for each write"
        return expected if self.since is None else f"{self.since:.3g} reads since the last merge, {expected} expected"


@dataclass
class ReadCounts:
    """The reads of this process that are not in the state yet. Safe to use from many threads."""

    state: Registry | None
    _waiting: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _flushed_at: float = field(default_factory=time.monotonic)

    def note(self, scan: Scan, limit: int | None = None) -> None:
        """Count a read that is about to be made, if it is of a table whose reads matter."""
        if scan.is_present and scan.files:
            opened = len(scan.files) if limit is None else min(limit, 1)
            self.add(scan.table, opened / max(scan.total_files, len(scan.files)))

    def add(self, table: Table, reads: float = 1.0) -> None:
        """Count reads of the whole of a table, if its reads matter."""
        if self.state is None or not _is_counted(table):
            return
        with self._mutex:
            self._waiting[_name(table)] += reads
            is_due = time.monotonic() - self._flushed_at > FLUSH_SECONDS
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Add all counts to the state; they wait here if it cannot be reached, for no read has to fail for them."""
        with self._mutex:
            self._flushed_at = time.monotonic()
            names = list(self._waiting)
        try:
            for name in names:
                self._settle(name)
        except StateUnavailableError as error:
            _LOG.warning("reads of %s are not counted in the state yet: %s", ", ".join(names), error)

    def of(self, table: Table) -> Reads:
        """What is known now of the reads of `table`; raises `StateUnavailableError`."""
        if self.state is None or not _is_counted(table):
            return stated(table)
        total = self._settle(_name(table))
        for snapshot in current_ancestors(table):
            known = snapshot.summary.additional_properties if snapshot.summary else {}
            if READS in known and EXPECTED in known:
                # Less than before only if the state was lost.
                since = max(total - float(known[READS]), 0.0)
                before = float(known[EXPECTED])
                return Reads(moving_average([since], before), since, total)
        return Reads(FIRST_GUESS, 0.0, total)

    def _settle(self, name: str) -> float:
        """Add this process's reads of a table to the state; all reads of it."""
        assert self.state is not None
        with self._mutex:
            mine = self._waiting.pop(name, 0.0)
        try:
            while True:
                known = self.state.get(keys.reads(name))
                total = (float(known) if known else 0.0) + mine
                if not mine or self.state.cas(keys.reads(name), known, f"{total:.3f}".encode()):
                    return total
        except BaseException:
            with self._mutex:
                self._waiting[name] += mine
            raise


def stated(table: Table) -> Reads:
    """What the owner of `table` says of its reads, or the first guess: all that is known without a count."""
    said = reads_per_write_of(table)
    return Reads() if said is None else Reads(said)


def moving_average(counts: Iterable[float], first: float = FIRST_GUESS) -> float:
    """What to expect after these counts, the newest last."""
    for count in counts:
        first += (count - first) * WEIGHT
    return first


def _is_counted(table: Table) -> bool:
    return write_mode_of(table) == "hybrid" and reads_per_write_of(table) is None


def _name(table: Table) -> str:
    return ".".join(table.name())
