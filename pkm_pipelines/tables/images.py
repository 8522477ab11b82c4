"""The rows that a merge takes away, as far as it has read them anyway.

Whoever reads the changes of the table later wants them, and would have to look them up in the data files again. They
are kept until the merge is written, up to a bound: a merge of many rows keeps none.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pkm_pipelines.storage.iceberg_datafile import RowPositions

# Bytes of rows in memory. Every reader of the table has the delete files to open, so they must stay small.
KEPT_BYTES = 4 << 20


class Images:
    """Rows by data file and position. Threads may share it."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._left = limit
        self._lock = threading.Lock()
        self._parts: dict[str, list[tuple[RowPositions, pa.Table]]] = defaultdict(list)

    @property
    def is_open(self) -> bool:
        """Whether there is room for more."""
        return self._left > 0

    def add(self, path: str, positions: RowPositions, rows: pa.Table) -> None:
        """Keep the rows at these positions of a data file, in this order, if there is room for them."""
        if not len(positions):
            return
        with self._lock:
            self._left -= rows.nbytes
            if self.is_open:
                self._parts[path].append((positions, rows))
            else:
                self._parts.clear()

    def of(self, path: str, positions: RowPositions) -> pa.Table | None:
        """The rows at these positions (ascending); None unless all of them were kept."""
        parts: Sequence[tuple[RowPositions, pa.Table]] = self._parts.get(path, ())
        if not parts:
            return None
        known = np.concatenate([places for places, _ in parts])
        order = np.argsort(known, kind="stable")
        at = np.searchsorted(known, positions, sorter=order)
        if at.max(initial=0) >= len(known) or not np.array_equal(known[order[at]], positions):
            return None
        return pa.concat_tables([rows for _, rows in parts]).take(pa.array(order[at]))
