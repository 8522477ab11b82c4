"""How many distinct values the columns of a table hold, about, in one pass and in constant memory.

The k least hashes of the values are kept; how close together they lie tells how many there are (Z. Bar-Yossef et al.,
"Counting Distinct Elements in a Data Stream", RANDOM 2002). Up to k values the count is exact, above it the standard
error is 1 / √(k - 2), some 1.6 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from pkm_pipelines.model.progress import Progress
from pkm_pipelines.storage.iceberg_manifests import live_files
from pkm_pipelines.storage.iceberg_reader import FileReader

KEPT = 4096
_HASHES = 2.0**64


class DistinctCount:
    """The distinct values of one column, nulls left out."""

    def __init__(self) -> None:
        self._least = np.empty(0, np.uint64)

    def add(self, values: pa.Array) -> None:
        """Count some values."""
        import polars as pl

        hashes = pl.Series(values.drop_null()).hash(seed=0).to_numpy()
        if len(self._least) == KEPT:
            hashes = hashes[hashes < self._least[-1]]
        if len(hashes):
            self._least = np.unique(np.concatenate([self._least, hashes]))[:KEPT]

    @property
    def estimate(self) -> int:
        """How many there are."""
        if len(self._least) < KEPT:
            return len(self._least)
        return round((KEPT - 1) / (float(self._least[-1]) / _HASHES))


def countable(table: Table) -> list[str]:
    """The columns whose values can be told apart: those that are no lists and structs."""
    return [field.name for field in table.schema().fields if field.field_type.is_primitive]


def count_distinct(table: Table, columns: Sequence[str], progress: Progress) -> dict[str, int]:
    """The number of distinct values of each column."""
    counts = {name: DistinctCount() for name in columns}
    reader = FileReader(table, columns)
    for file in live_files(table, table.metadata.current_snapshot()):
        progress.check_cancelled()
        for batch in reader.batches(file):
            for name, found in counts.items():
                found.add(batch.column(name))
        progress.advance()
    return {name: found.estimate for name, found in counts.items()}
