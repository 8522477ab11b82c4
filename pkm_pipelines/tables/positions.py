"""Which rows of a data file a delta concerns, found by reading as little of the file as can be.

Row groups are passed over whose statistics leave no room for any key. Of the others the key and the order columns
are read. A row that is strictly newer than the one that is there differs from it, since its order is a part of it;
only where the order does not tell are whole rows read, of the row groups in which they lie, and compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table

from pkm_pipelines.model.records import Slice
from pkm_pipelines.storage.iceberg_datafile import OpenDataFile, RowPositions, opened
from pkm_pipelines.storage.iceberg_manifests import LiveFile, column_bounds
from pkm_pipelines.storage.iceberg_reader import FileReader
from pkm_pipelines.tables.bounds import Bounds, KeyRanges
from pkm_pipelines.tables.images import Images
from pkm_pipelines.tables.rows import KeyIndex, differ, in_slice, is_older

# A file up to this size is read whole at once: on S3 each further look at it costs three requests.
WHOLE_BYTES = 1 << 20
# Rows of key columns that are looked up at once; each lookup costs a pass over the keys of the delta.
_KEY_BATCH_ROWS = 131_072

RowNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """What decides in one merge: the key, the order in which the newest wins, and the slice that is replaced.

    Among the rows that are given the newest is that by `order`; against a row that is there already it is that by
    `order_against`, which is empty where the given rows win in any case. Whether anything is replaced at all stands
    with each file; a replacement of `part` None is one of everything.
    """

    key: list[str]
    order: list[str]
    order_against: list[str]
    part: Slice | None


@dataclass
class Matches:
    """What a delta does to the rows of one data file; rows that are deleted already do not count.

    `matched` are the positions of keys that the delta has. `changed` are those of them whose row becomes another,
    the one at the same place in `rows` of the delta. `doomed` are positions whose row goes if it is not matched.
    """

    path: str
    matched: list[RowPositions] = field(default_factory=list)
    changed: list[RowPositions] = field(default_factory=list)
    rows: list[RowNumbers] = field(default_factory=list)
    doomed: list[RowPositions] = field(default_factory=list)
    found: list[RowNumbers] = field(default_factory=list)


class Finder:
    """Finds rows of a delta, unique by key, and keys to delete, in data files of one table."""

    def __init__(
        self, table: Table, rules: Rules, rows: pa.Table, doomed: Sequence[pa.Table], images: Images | None = None
    ) -> None:
        self._table = table
        self._rules = rules
        self._rows = rows
        self._images = images
        self._index = KeyIndex(rows, rules.key)
        self._doomed = [KeyIndex(keys, rules.key) for keys in doomed]
        self._ranges = KeyRanges([rows, *doomed], rules.key)
        columns = [*rules.key, *rules.order_against, *([rules.part.column] if rules.part is not None else [])]
        # Merges look at several files at once.
        self._keys = FileReader(table, list(dict.fromkeys(columns)), use_threads=False)
        self._whole = FileReader(table, use_threads=False)
        rest = [name for name in self._whole.schema.names if name not in rules.key]
        self._rest = FileReader(table, rest, use_threads=False)

    def may_hold(self, file: LiveFile) -> bool:
        """Whether one of the keys may be in a file, by the bounds that the table's metadata has of it."""
        bounds = {name: self._file_bounds(file, name) for name in self._rules.key}
        return self._ranges.may_hold({name: known for name, known in bounds.items() if known is not None})

    def find(self, file: LiveFile, *, is_cut: bool) -> Matches:
        """What happens to the rows of `file`; with `is_cut` those of the slice that is replaced are doomed."""
        matches = Matches(file.path)
        with opened(self._table, file) as one:
            groups = list(one.row_groups) if is_cut else self._row_groups(one)
            is_whole = file.file.file_size_in_bytes <= WHOLE_BYTES
            unsure: list[tuple[RowPositions, RowNumbers]] = []
            for start, rows in self._batches(one, groups, is_whole):
                found = self._index.find(rows)
                hit = found.is_valid()
                at = _where(hit)
                numbers = found.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
                positions, alive = _alive(one, start + at, groups)
                at, numbers, positions = at[alive], numbers[alive], positions[alive]
                matches.matched.append(positions)
                matches.found.append(numbers)
                ties = self._newer(matches, rows, at, numbers, positions)
                if is_whole:
                    self._keep(matches, positions[~ties], rows, at[~ties])
                at, numbers, positions = at[ties], numbers[ties], positions[ties]
                if is_whole and len(at):
                    self._compare(matches, rows.take(pa.array(at)), numbers, positions)
                elif len(at):
                    unsure.append((positions, numbers))
                self._doom(matches, one, rows, hit, start, groups, is_cut=is_cut, is_whole=is_whole)
            self._look_again(matches, one, unsure)
        return matches

    def _batches(self, one: OpenDataFile, groups: list[int], is_whole: bool) -> Iterator[tuple[int, pa.Table]]:
        """The rows of row groups, each batch with the place where it starts among them."""
        start = 0
        for batch in (self._whole if is_whole else self._keys).stored(one, groups, _KEY_BATCH_ROWS):
            yield start, pa.Table.from_batches([batch])
            start += batch.num_rows

    def _newer(
        self, matches: Matches, stored: pa.Table, at: RowNumbers, numbers: RowNumbers, positions: RowPositions
    ) -> npt.NDArray[np.bool_]:
        """Note the rows that are newer by the order; returns which ones it does not tell about."""
        order = self._rules.order_against
        if not order or not len(at):
            return np.ones(len(at), dtype=bool)
        ours = self._rows.select(order).take(pa.array(numbers))
        theirs = stored.select(order).take(pa.array(at))
        newer, older = (_mask(is_older(*pair, order)) for pair in ((theirs, ours), (ours, theirs)))
        matches.changed.append(positions[newer])
        matches.rows.append(numbers[newer])
        return ~(newer | older)

    def _compare(self, matches: Matches, stored: pa.Table, numbers: RowNumbers, positions: RowPositions) -> None:
        """Note the rows that differ from the stored ones at the same places."""
        changed = _mask(differ(self._rows.take(pa.array(numbers)), stored))
        matches.changed.append(positions[changed])
        matches.rows.append(numbers[changed])
        self._keep(matches, positions[changed], stored, np.flatnonzero(changed))

    def _keep(self, matches: Matches, positions: RowPositions, stored: pa.Table, at: RowNumbers) -> None:
        """Keep rows that may go, which stand `at` some places of those just read."""
        if self._images is not None and self._images.is_open and len(at):
            self._images.add(matches.path, positions, stored.take(pa.array(at)))

    def _look_again(
        self, matches: Matches, one: OpenDataFile, unsure: Sequence[tuple[RowPositions, RowNumbers]]
    ) -> None:
        """Compare whole rows where the key and the order did not tell. Their keys are those of the delta's rows."""
        if not unsure or not self._rest.schema.names:  # rows that are nothing but a key differ in nothing
            return
        positions = np.concatenate([positions for positions, _ in unsure])
        numbers = np.concatenate([numbers for _, numbers in unsure])
        start = 0
        key = set(self._rules.key)
        for rest in _together(self._rest.stored_at(one, positions), _KEY_BATCH_ROWS):
            part = slice(start, start + rest.num_rows)
            ours = self._rows.select(self._rules.key).take(pa.array(numbers[part]))
            columns = [(ours if name in key else rest)[name] for name in self._whole.schema.names]
            stored = pa.Table.from_arrays(columns, schema=self._whole.schema)
            self._compare(matches, stored, numbers[part], positions[part])
            start += rest.num_rows

    def _doom(
        self,
        matches: Matches,
        one: OpenDataFile,
        rows: pa.Table,
        hit: pa.BooleanArray,
        start: int,
        groups: list[int],
        *,
        is_cut: bool,
        is_whole: bool,
    ) -> None:
        tests = [pc.is_valid(index.find(rows)) for index in self._doomed]
        if is_cut:
            tests.append(in_slice(rows, self._rules.part))
        for test in tests:
            at = _where(pc.and_not(test, hit))
            positions, alive = _alive(one, start + at, groups)
            matches.doomed.append(positions[alive])
            if is_whole:
                self._keep(matches, positions[alive], rows, at[alive])

    def _file_bounds(self, file: LiveFile, name: str) -> Bounds | None:
        bounds = column_bounds(self._table, file.file, name)
        if bounds is None:
            return None
        kind = self._rows.schema.field(name).type
        return pa.scalar(bounds[0], kind).as_py(), pa.scalar(bounds[1], kind).as_py()

    def _row_groups(self, one: OpenDataFile) -> list[int]:
        known = {name: one.bounds(self._keys.with_id(name)) for name in self._rules.key}
        return [
            number
            for number in one.row_groups
            if self._ranges.may_hold({name: bounds[number] for name, bounds in known.items() if bounds is not None})
        ]


def _together(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Batches of a few rows each as tables of about so many: what is done with one costs much beside its rows."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count >= rows:
            yield pa.Table.from_batches(held)
            held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _alive(one: OpenDataFile, places: RowPositions, groups: list[int]) -> tuple[RowPositions, npt.NDArray[np.bool_]]:
    """The positions of rows that stand at `places` among some row groups, and which of them are not deleted."""
    if not len(places):
        return places, np.ones(0, dtype=bool)
    positions = one.positions(places, groups)
    if not one.deletes:
        return positions, np.ones(len(positions), dtype=bool)
    return positions, ~is_among(positions, one.deleted)


def is_among(positions: RowPositions, ascending: RowPositions) -> npt.NDArray[np.bool_]:
    """For each of `positions` whether it is in `ascending`."""
    if not len(ascending):
        return np.zeros(len(positions), dtype=bool)
    at = np.minimum(np.searchsorted(ascending, positions), len(ascending) - 1)
    return ascending[at] == positions


def _where(mask: pa.BooleanArray) -> RowNumbers:
    return np.flatnonzero(_mask(mask))


def _mask(mask: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    if isinstance(mask, pa.ChunkedArray):
        mask = mask.combine_chunks()
    return mask.to_numpy(zero_copy_only=False)
