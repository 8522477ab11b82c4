"""The vaults of all sources as links see them: which notes and files there are, and by what names.

Links resolve within the source of their note. Names and paths of all notes that are alive are held in memory,
their contents never: some 200 bytes a note.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.model.tables import PROCESSED_NOTES, RAW_MEDIA
from pkm_pipelines.operations.stores import Stores

if TYPE_CHECKING:
    from pkm_pipelines.knowledge.links import VaultIndex
    from pkm_pipelines.knowledge.mentions import MentionFinder
    from pkm_pipelines.knowledge.note import Flavour

NAME_COLUMNS = ("note_id", "source", "path", "title", "aliases", "block_ids")


class NoteName(NamedTuple):
    """One key that edges look a note up by. It leads elsewhere once any part of this changes."""

    key: str
    note_id: str
    path: str


def names_of(rows: pa.RecordBatch | pa.Table) -> Iterator[NoteName]:
    """Every key that a link, block reference or mention may reach these notes by; takes `NAME_COLUMNS`."""
    from pkm_pipelines.knowledge import links

    for row in rows.select(NAME_COLUMNS).to_pylist():
        keys = set(links.names_of(row["path"], row["title"], row["aliases"]))
        keys |= {block["id"] for block in row["block_ids"] or ()}
        yield from (NoteName(key, row["note_id"], row["path"]) for key in keys)


@dataclass(frozen=True)
class Vault:
    """What links and mentions in the notes of one source are found by."""

    flavour: Flavour
    index: VaultIndex
    note_ids: Mapping[str, str]
    finder: MentionFinder

    def edges(self, notes: pa.RecordBatch) -> list[pa.RecordBatch]:
        """All edges of some of its notes."""
        from pkm_pipelines.knowledge.graph import edges

        return [edges(notes, self.index, self.note_ids), self.mentions(notes)]

    def mentions(self, notes: pa.RecordBatch) -> pa.RecordBatch:
        """The mention edges alone."""
        return self.finder.find(notes, flavour=self.flavour)


class Vaults:
    """The vault of each source."""

    def __init__(self, vaults: Mapping[str, Vault], count: int) -> None:
        self._vaults = vaults
        self.count = count

    @classmethod
    def load(cls, stores: Stores, snapshots: Mapping[str, int], only: Collection[str] | None = None) -> Vaults:
        """Read all names of notes and files as of `snapshots`; `only` are the keys to find mentions of, if not all."""
        columns = [*NAME_COLUMNS, "deleted_at"]
        rows = stores.tables.read(
            PROCESSED_NOTES.name, columns=columns, snapshot_id=snapshots[PROCESSED_NOTES.name]
        ).read_all()
        alive = rows.filter(pc.is_null(rows["deleted_at"])).to_pylist()
        media = media_paths(stores, snapshots.get(RAW_MEDIA.name))
        by_source: dict[str, list[dict[str, Any]]] = {}
        for row in alive:
            by_source.setdefault(row["source"], []).append(row)
        vaults = {
            source: _vault(stores.flavour(source), notes, media.get(source, set()), only)
            for source, notes in by_source.items()
        }
        return cls(vaults, len(alive))

    def edges(self, notes: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """All edges of some notes, of any sources."""
        for vault, part in self._by_vault(notes):
            yield from vault.edges(part)

    def mentioning(self, notes: pa.RecordBatch) -> set[str]:
        """Those of some notes in whose text a name stands that is looked for."""
        return {
            note for vault, part in self._by_vault(notes) for note in vault.mentions(part)["src"].unique().to_pylist()
        }

    def _by_vault(self, notes: pa.RecordBatch) -> Iterator[tuple[Vault, pa.RecordBatch]]:
        for source in notes["source"].unique().to_pylist():
            if source in self._vaults:
                yield self._vaults[source], notes.filter(pc.equal(notes["source"], source))


def _vault(
    flavour: Flavour, notes: Iterable[Mapping[str, Any]], media: Collection[str], only: Collection[str] | None
) -> Vault:
    from pkm_pipelines.knowledge.links import VaultIndex
    from pkm_pipelines.knowledge.mentions import MentionFinder, note_names

    notes = list(notes)
    note_ids = {note["path"]: note["note_id"] for note in notes}
    blocks = (
        {block["id"]: note["path"] for note in notes for block in note["block_ids"] or ()}
        if flavour == "logseq"
        else {}
    )
    names = (
        name for note in notes for name in note_names(note["note_id"], note["path"], note["title"], note["aliases"])
    )
    return Vault(flavour, VaultIndex([*note_ids, *media], blocks=blocks), note_ids, MentionFinder(names, only=only))


def media_paths(stores: Stores, snapshot_id: int | None) -> dict[str, set[str]]:
    """The files of each source that are no notes and exist, as of a snapshot of the media log."""
    if snapshot_id is None:
        return {}
    columns = ["source", "path", "change_type", "changed_at", "ordinal", "lsn"]
    log = stores.tables.read(RAW_MEDIA.name, columns=columns, snapshot_id=snapshot_id).read_all()
    ordered = log.sort_by([(name, "ascending") for name in ("changed_at", "ordinal", "lsn")])
    found: dict[str, set[str]] = {}
    for source, path, change in zip(*(ordered[name].to_pylist() for name in columns[:3]), strict=True):
        paths = found.setdefault(source, set())
        if change == "DELETE":
            paths.discard(path)
        else:
            paths.add(path)
    return found


EDGE_COLUMNS = (*NAME_COLUMNS, "tags", "links", "content", "deleted_at")
"""The columns of silver that edges are made of."""
