"""Z-order: one number a row, so that rows which are near in several columns are near in the file.

Each column's values become ranks that keep their order, the bits of the ranks are interleaved, and the rows are sorted
by what comes out (G. M. Morton, "A Computer Oriented Geodetic Data Base and a New Technique in File Sequencing", IBM,
1966). Ranks and not values are interleaved, as J. A. Orenstein and T. H. Merrett do ("A class of data structures for
associative searching", PODS 1984), because values are skewed and of different scales. A rank is the position among
quantiles of a sample, so memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.errors import StoreError

SAMPLE_ROWS = 1 << 18
"""Rows of a column that are looked at, at most, to tell how its values are distributed."""
RANK_BITS = 32
Z_BITS = 64


class ZOrder:
    """The z-order of rows by some columns, whose distribution was sampled."""

    def __init__(self, columns: Sequence[str], quantiles: Sequence[pa.Array]) -> None:
        self.columns = list(columns)
        self._quantiles = quantiles
        self._bits = min(RANK_BITS, Z_BITS // len(columns))

    @classmethod
    def sample(cls, columns: Sequence[str], batches: Iterable[pa.RecordBatch], rows: int) -> ZOrder:
        """Sample some of about so many `rows`. Raises `StoreError` for a column whose values have no order."""
        step = max(1, rows // SAMPLE_ROWS)
        parts: list[pa.Table] = []
        skipped = 0
        for batch in batches:
            first = -skipped % step
            parts.append(pa.table(batch.select(list(columns)).take(pa.array(np.arange(first, batch.num_rows, step)))))
            skipped += batch.num_rows
        sampled = pa.concat_tables(parts).combine_chunks() if parts else pa.table({name: [] for name in columns})
        return cls(columns, [_distinct(name, sampled.column(name).combine_chunks()) for name in columns])

    def keys(self, rows: pa.Table) -> pa.Table:
        """One column, `z`, of 64-bit numbers: the order of `rows`. Null ranks before everything."""
        ranks = [
            self._rank(rows.column(name), known) for name, known in zip(self.columns, self._quantiles, strict=True)
        ]
        return pa.table({"z": pa.array(interleave(ranks, self._bits))})

    def _rank(self, column: pa.ChunkedArray, known: pa.Array) -> np.ndarray:
        """The rank of each value among the sampled ones, spread over the bits that a column has."""
        both = pa.chunked_array([known, *column.cast(known.type).chunks])
        dense = pc.rank(both, sort_keys=[("", "ascending", "at_start")], tiebreaker="min").to_numpy()
        # How many sampled values are not greater: comparable between batches, unlike a rank among the batch's own.
        at = np.searchsorted(np.sort(dense[: len(known)]), dense[len(known) :], side="right")
        scale = ((1 << self._bits) - 1) / max(len(known), 1)
        return (at * scale).astype(np.uint64)


def interleave(ranks: Sequence[np.ndarray], bits: int) -> np.ndarray:
    """The bits of several numbers in turn, the most significant first, that of the first number before the others'."""
    found = np.zeros(len(ranks[0]), np.uint64)
    for bit in range(bits):
        for position, rank in enumerate(ranks):
            target = np.uint64(bit * len(ranks) + len(ranks) - 1 - position)
            found |= ((rank >> np.uint64(bit)) & np.uint64(1)) << target
    return found


def _distinct(name: str, values: pa.Array) -> pa.Array:
    """The distinct values of a sample, in order."""
    try:
        known = pc.unique(values.drop_null())
        return known.take(pc.sort_indices(known))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise StoreError(f"z-order: column {name} is {values.type}, whose values have no order") from None
