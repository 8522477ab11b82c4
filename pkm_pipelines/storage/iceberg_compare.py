"""Whether a copy of a table is the table: file by file, and snapshot by snapshot as readers see them.

Every data file is compared by its bytes (SHA-256, both sides read from their stores), once however many snapshots share
it. The current snapshot and all that a branch or tag names are compared by what they show: which files, which rows
of them are deleted, and how many rows that leaves; the current one is also read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from posixpath import basename

from pyiceberg.table import Table

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.progress import Progress
from pkm_pipelines.storage.iceberg_deletes import deleted_positions
from pkm_pipelines.storage.iceberg_manifests import LiveFile, live_files
from pkm_pipelines.storage.iceberg_move import THREADS, Copied, hash_file
from pkm_pipelines.storage.iceberg_reader import FileReader


@dataclass(frozen=True)
class Content:
    """What a snapshot shows: `digest` is a hash of its files' bytes and of the positions that are deleted in them."""

    snapshot_id: int
    rows: int
    digest: str


class Comparison:
    """Compares a table with its copy. It remembers the files that it has compared, so it can be asked again."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._hashes: dict[str, str] = {}

    def compare(self, old: Table, new: Table, copied: Copied) -> dict[str, Content]:
        """What each branch and tag shows, by its name; the same in both.

        Raises `StoreError` naming the first file or snapshot that is not the same.
        """
        self._compare_files(old, new, copied)
        if _frame(old) != _frame(new):
            raise StoreError(f"table {_name(old)}: the copy has other snapshots, branches or tags; move it again")
        digests = {path: self._hashes[target] for path, target in copied.data.items()}
        copies = {target: self._hashes[target] for target in copied.data.values()}
        seen: dict[int, Content] = {}
        for ref in old.metadata.refs.values():
            if ref.snapshot_id in seen:
                continue
            before = _content(old, ref.snapshot_id, digests)
            after = _content(new, ref.snapshot_id, copies)
            if before != after:
                raise StoreError(
                    f"table {_name(old)}: snapshot {ref.snapshot_id} has {before.rows:,} rows and its copy "
                    f"{after.rows:,}, or others; the catalog still points to the old one"
                )
            seen[ref.snapshot_id] = before
        current = old.metadata.current_snapshot_id
        if current is not None and current in seen:
            self._check_reads(new, seen[current])
        return {name: seen[ref.snapshot_id] for name, ref in old.metadata.refs.items()}

    def _compare_files(self, old: Table, new: Table, copied: Copied) -> None:
        left = {path: target for path, target in copied.data.items() if target not in self._hashes}
        self._progress.stage(f"verify {_name(old)}", len(left), unit="files")

        def compare(path: str, target: str) -> None:
            self._progress.check_cancelled()
            expected = copied.hashes.get(path) or hash_file(old.io.new_input(path))
            found = hash_file(new.io.new_input(target))
            if found != expected:
                raise StoreError(f"{target}: is not the same as {path}; delete the copy and move the warehouse again")
            self._hashes[target] = found
            self._progress.advance(1)

        with ThreadPoolExecutor(THREADS) as pool:
            for future in [pool.submit(compare, path, target) for path, target in left.items()]:
                future.result()

    def _check_reads(self, new: Table, expected: Content) -> None:
        reader = FileReader(new, [new.schema().fields[0].name])
        rows = 0
        for file in live_files(new, new.metadata.current_snapshot()):
            self._progress.check_cancelled()
            rows += sum(batch.num_rows for batch in reader.batches(file))
        if rows != expected.rows:
            raise StoreError(f"table {_name(new)}: its copy reads {rows:,} rows instead of {expected.rows:,}")


def _content(table: Table, snapshot_id: int, digests: Mapping[str, str]) -> Content:
    total = hashlib.sha256()
    rows = 0
    for file in sorted(live_files(table, table.metadata.snapshot_by_id(snapshot_id)), key=_order):
        positions = deleted_positions(table.io, file.file, file.deletes)
        line = f"{digests[file.path]} {file.file.record_count} {file.sequence_number} {file.partition!r} "
        total.update(line.encode() + hashlib.sha256(positions.to_numpy().tobytes()).digest())
        rows += file.file.record_count - len(positions)
    return Content(snapshot_id, rows, total.hexdigest())


def _order(file: LiveFile) -> tuple[int, str]:
    return file.sequence_number, basename(file.path)


def _frame(table: Table) -> object:
    """What a copy shares with the table beside its files."""
    metadata = table.metadata
    snapshots = [
        (one.snapshot_id, one.parent_snapshot_id, one.sequence_number, one.timestamp_ms, one.summary)
        for one in metadata.snapshots
    ]
    refs = {name: (ref.snapshot_id, ref.snapshot_ref_type) for name, ref in metadata.refs.items()}
    log = [(entry.snapshot_id, entry.timestamp_ms) for entry in metadata.snapshot_log]
    return snapshots, refs, log, metadata.table_uuid, metadata.current_snapshot_id, metadata.schemas


def _name(table: Table) -> str:
    return ".".join(table.name())
