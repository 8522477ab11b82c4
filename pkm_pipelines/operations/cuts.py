"""Cuts: moments at which all tables belong together, kept so that the whole lakehouse can be read as of then.

A finished run tags the snapshot of each table first and appends the cut to the log in state after, so a cut
in the log can always be read. Tags are named by snapshot and shared by the cuts that hold it; a tag goes with
its last cut. How many are kept is a setting, because each keeps a snapshot and its files alive.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkm_pipelines.model import keys
from pkm_pipelines.model.records import Mutation
from pkm_pipelines.model.tables import ICEBERG_TABLES, PROCESSED_NOTES
from pkm_pipelines.operations.stores import Stores

if TYPE_CHECKING:
    from pkm_pipelines.storage.lance import VectorStore
    from pkm_pipelines.tables.manager import TableManager

# What the tag of a snapshot that a cut holds begins with.
CUT_TAG = "cut-"
INPUTS: Mapping[str, tuple[str, ...]] = {
    "silver.processed_notes": ("bronze.raw_notes",),
    "silver.extracted_concepts": ("silver.processed_notes",),
    "silver.knowledge_graph": ("silver.processed_notes", "bronze.raw_media"),
    "gold.note_metrics": ("silver.processed_notes", "silver.knowledge_graph", "silver.extracted_concepts"),
}


@dataclass(frozen=True)
class Cut:
    """One moment: the snapshot of each table, and which outputs had not read their input up to it."""

    id: str
    at: dt.datetime
    snapshots: dict[str, int]
    lag: tuple[str, ...] = ()


def list_cuts(stores: Stores) -> list[Cut]:
    """Every kept cut, oldest first."""
    return sorted((_parse(value) for _, value in stores.state.scan(keys.CUT)), key=lambda cut: (cut.at, cut.id))


def take_cut(stores: Stores, cut_id: str) -> Cut | None:
    """Tag the present snapshots and log the cut; None if nothing changed since the last one."""
    snapshots = {
        spec.name: snapshot
        for spec in ICEBERG_TABLES
        if stores.iceberg.exists(spec.name) and (snapshot := stores.iceberg.snapshot_id(spec.name)) is not None
    }
    vectors = stores.vector_table
    if vectors is not None and stores.vectors.exists(vectors):
        version = stores.vectors.version(vectors)
        if version is not None:
            snapshots[vectors] = version
    cuts = list_cuts(stores)
    if not snapshots or (cuts and cuts[-1].snapshots == snapshots):
        return None
    tagged = {(table, snapshot) for cut in cuts for table, snapshot in cut.snapshots.items()}
    for table, snapshot in snapshots.items():
        if (table, snapshot) not in tagged:
            _store_of(stores, table).tag(table, _tag_name(snapshot), snapshot)
    cut = Cut(cut_id, dt.datetime.now(dt.UTC), snapshots, _lag(stores, snapshots))
    stores.state.put(keys.cut(cut.id), _dump(cut))
    drop_cuts(stores)
    return cut


def _lag(stores: Stores, snapshots: Mapping[str, int]) -> tuple[str, ...]:
    behind: list[str] = []
    for output, inputs in INPUTS.items():
        behind += [
            f"{output} < {name}"
            for name in inputs
            if output in snapshots and name in snapshots and stores.tables.watermark(output, name) != snapshots[name]
        ]
    if (vectors := stores.vector_table) and vectors in snapshots:
        notes = PROCESSED_NOTES.name
        if stores.vectors.watermark(vectors, notes) != snapshots.get(notes):
            behind.append(f"{vectors} < {notes}")
    return tuple(behind)


def drop_cuts(stores: Stores) -> int:
    """Forget the cuts that are not to be kept, and the tags that only they held; returns how many went."""
    settings = stores.settings
    cuts = list_cuts(stores)
    kept_ids = kept_cuts(
        cuts, settings.keep_cuts_last, settings.keep_cuts_hourly, settings.keep_cuts_daily, settings.keep_cuts_monthly
    )
    dropped = [cut for cut in cuts if cut.id not in kept_ids]
    if not dropped:
        return 0
    # The log first: a cut without its tag would be a promise that cannot be kept, a tag without a cut is only untidy.
    stores.state.apply([Mutation(keys.cut(cut.id), None) for cut in dropped])
    held = {pair for cut in cuts if cut.id in kept_ids for pair in cut.snapshots.items()}
    for table, snapshot in {pair for cut in dropped for pair in cut.snapshots.items()} - held:
        _store_of(stores, table).untag(table, _tag_name(snapshot))
    return len(dropped)


def kept_cuts(cuts: Iterable[Cut], last: int, hourly: int, daily: int, monthly: int) -> set[str]:
    """Ids of the cuts to keep: the newest `last`, then the newest one of each of so many hours, days and months."""
    newest_first = sorted(cuts, key=lambda cut: (cut.at, cut.id), reverse=True)
    kept = {cut.id for cut in newest_first[:last]}
    for count, period in ((hourly, "%Y-%m-%dT%H"), (daily, "%Y-%m-%d"), (monthly, "%Y-%m")):
        seen: dict[str, str] = {}
        for cut in newest_first:
            seen.setdefault(cut.at.strftime(period), cut.id)
        kept.update(list(seen.values())[:count])
    return kept


def _store_of(stores: Stores, table: str) -> TableManager | VectorStore:
    return stores.vectors if table.startswith("vectors.") else stores.tables


def _tag_name(snapshot: int) -> str:
    return f"{CUT_TAG}{snapshot}"


def _dump(cut: Cut) -> bytes:
    record = {"id": cut.id, "at": cut.at.isoformat(), "snapshots": cut.snapshots, "lag": list(cut.lag)}
    return json.dumps(record).encode()


def _parse(value: bytes) -> Cut:
    record = json.loads(value)
    return Cut(record["id"], dt.datetime.fromisoformat(record["at"]), record["snapshots"], tuple(record["lag"]))
