"""What a Lance version says of itself: which operation made it, and how far its inputs had been read.

The marks stand in the properties of the transaction that made a version, so they are as atomic as its rows.
Compaction, index builds and other writers make versions without any; then the newest version that has them
counts. Cleaning up old versions deletes their transactions, so it re-stamps the newest first (`lance_index`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lance import LanceDataset
from lance.dataset import LanceOperation, Transaction

from pkm_pipelines.model.records import CommitResult

OP_ID = "pkm.op-id"
WATERMARK = "pkm.watermark."
_COUNTS = "pkm.rows"


@dataclass(frozen=True)
class Marks:
    """The watermarks of a table, by input table, and the version that holds them (None: there are none)."""

    watermarks: Mapping[str, int] = field(default_factory=dict[str, int])
    version: int | None = None


def read_marks(dataset: LanceDataset) -> Marks:
    """The marks that hold at `dataset`'s version: those of the newest version at or before it that has any."""
    for version, transaction in _transactions(dataset):
        properties = transaction.transaction_properties or {}
        if OP_ID in properties:
            marks = {k.removeprefix(WATERMARK): int(v) for k, v in properties.items() if k.startswith(WATERMARK)}
            return Marks(marks, version)
        if isinstance(transaction.operation, LanceOperation.Overwrite):
            break  # by another writer: whatever was read before is not in these rows
    return Marks()


def find_operation(dataset: LanceDataset, op_id: str, *, back_to: int) -> CommitResult | None:
    """What the operation `op_id` did in a version after `back_to`; None if it has not landed."""
    for version, transaction in _transactions(dataset):
        if version <= back_to:
            return None
        properties = transaction.transaction_properties or {}
        if properties.get(OP_ID) == op_id:
            added, updated, deleted = (int(count) for count in properties.get(_COUNTS, "0 0 0").split())
            return CommitResult("", version, added, updated, deleted)
    return None


def properties_of(op_id: str, watermarks: Mapping[str, int], counts: tuple[int, int, int]) -> dict[str, str]:
    """The transaction properties of one commit: its op-id, its counts, and all watermarks that hold after it."""
    marks = {f"{WATERMARK}{name}": str(snapshot) for name, snapshot in sorted(watermarks.items())}
    return {OP_ID: op_id, _COUNTS: " ".join(map(str, counts)), **marks}


def _transactions(dataset: LanceDataset) -> Iterator[tuple[int, Transaction]]:
    """The transactions of `dataset`'s version and those before it, newest first, as far as they still exist.

    A restore continues with the version that it brought back. Versions that were cleaned up are passed over:
    older ones may have been kept by a tag, and an older mark only means that more is read again.
    """
    version = dataset.version
    while version > 0:
        try:
            transaction = dataset.read_transaction(version)
        except OSError as error:
            if "not found" not in str(error).lower():  # stores spell it in their own ways
                raise
            version = max((ref["version"] for ref in dataset.version_refs() if ref["version"] < version), default=0)
            continue
        except TypeError:  # pylance 14.0.2 cannot express a compaction that moved indexes; it carries no marks
            transaction = None
        if transaction is not None:
            yield version, transaction
            if isinstance(transaction.operation, LanceOperation.Restore):
                version = transaction.operation.version
                continue
        version -= 1
