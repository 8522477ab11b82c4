"""Finding the tables of a warehouse by their metadata files, when the catalog that knew them is lost.

A catalog holds one URL for each table: its newest metadata file. A commit writes such a file, numbered one higher than
the one that it is made from, and then asks the catalog to take it. Of two commits that are made from one file the
catalog takes one, and the file of the other stays behind. So the highest number alone does not tell which was taken.

What is exact:
- A file that a readable one of a higher number names in its log of earlier files was taken.
- A file whose snapshot has no manifest list any more was not: whoever loses deletes what it wrote.
- A file whose current snapshot is known elsewhere was taken: another table has read it (`pkm.watermark.<table>` in
  its snapshots), or the state names it in a cut or in a copy of a watermark.
- If only one file of the highest number is left, it is the newest. Whether its commit was acknowledged cannot be told:
  it may be one that was killed between its two steps. It is whole all the same, it is made from the one that was
  current, and whoever made it finds it by its operation id.

What is a doubt: several files of the highest number, all whole, of which nothing names one. That takes a writer that
was killed right after it lost. They are listed and none is registered, unless they show the same snapshot: then they
differ in tags or properties only, and the later one is taken. And a folder in which one table was made after another
one, whose numbers begin anew: every file that the log of the newest does not name is looked at, and tells its table.
One that shows no snapshot and was not written last is left of a creation, and is no doubt.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from pyiceberg.exceptions import ValidationError
from pyiceberg.io import FileIO
from pyiceberg.serializers import FromInputFile
from pyiceberg.table.metadata import TableMetadata

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.endpoint import open_store
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_catalog import warehouse_path
from pkm_pipelines.storage.iceberg_history import WATERMARK
from pkm_pipelines.storage.iceberg_leftovers import metadata_number
from pkm_pipelines.storage.iceberg_move import plain
from pkm_pipelines.storage.iceberg_register import file_io

_NEVER = (dt.datetime.min.replace(tzinfo=dt.UTC), 0, "")


@dataclass(frozen=True)
class Candidate:
    """A metadata file that may be a table's newest. `why_not` says why it cannot be; empty if it can."""

    metadata_location: str
    number: int
    updated_ms: int = 0
    table_uuid: str = ""
    snapshot_id: int | None = None
    snapshots: int = 0
    confirmed: bool = False
    why_not: str = ""


@dataclass(frozen=True)
class FoundTable:
    """A table of the warehouse. `metadata_location` is its newest metadata file as far as can be told.

    `confirmed` is whether something else shows that its last commit was taken. `doubt` says why it cannot be told which
    of the `candidates` is the newest; empty if it can.
    """

    name: str
    metadata_location: str = ""
    snapshot_id: int | None = None
    confirmed: bool = False
    doubt: str = ""
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class _Folder:
    """The metadata files of one table, by number; `last` is the one that was written last, as its store says."""

    name: str
    location: str
    files: Mapping[int, Sequence[str]]
    last: tuple[int, str]


def find_tables(
    store: IcebergStore, known: Mapping[str, Set[int]], choices: Mapping[str, str] | None = None
) -> list[FoundTable]:
    """Every table whose metadata files lie in the warehouse, by name.

    `known` are snapshots that are known to have been committed, by table. `choices` are metadata files that somebody
    who knows has chosen, by table. Raises `StoreError` if the warehouse cannot be listed, or a choice is no candidate.
    """
    io = file_io(store, warehouse_path(store.warehouse))
    folders = _folders(store)
    read = {folder.name: _read(io, folder) for folder in folders}
    marks = _watermarks(metadata for found in read.values() for _, metadata in found if metadata is not None)
    return [
        _judge(
            io,
            folder,
            read[folder.name],
            known.get(folder.name, set()) | marks.get(folder.name, set()),
            (choices or {}).get(folder.name),
        )
        for folder in folders
    ]


def _folders(store: IcebergStore) -> list[_Folder]:
    root = warehouse_path(store.warehouse)
    files: dict[str, dict[int, list[str]]] = {}
    last: dict[str, tuple[dt.datetime, int, str]] = {}
    for page in open_store(store.warehouse).list():
        for entry in page:
            folder, _, file = entry["path"].rpartition("/metadata/")
            number = metadata_number(file)
            if folder and number is not None:
                path = f"{root}/{entry['path']}"
                files.setdefault(folder, {}).setdefault(number, []).append(path)
                last[folder] = max(last.get(folder, _NEVER), (entry["last_modified"], number, path))
    return [
        _Folder(_name(folder), f"{root}/{folder}", numbers, last[folder][1:])
        for folder, numbers in sorted(files.items())
    ]


def _name(folder: str) -> str:
    """The name of the table in a folder; Glue's folders of a layer end in `.db`."""
    *layers, table = folder.split("/")
    return ".".join([*(layer.removesuffix(".db") for layer in layers), table])


def _read(io: FileIO, folder: _Folder) -> list[tuple[Candidate, TableMetadata | None]]:
    """The newest metadata files of each table in the folder: as many numbers as it takes until one that is whole.

    Files that a whole one names in its log are earlier ones of its table, and are not read.
    """
    found: list[tuple[Candidate, TableMetadata | None]] = []
    told: set[str] = set()
    for number in sorted(folder.files, reverse=True):
        files = [path for path in sorted(folder.files[number]) if plain(path) not in told]
        part = [_candidate(io, folder, number, path) for path in files]
        found += [one for one in part if not _is_done(one[0], found)]
        told |= {
            plain(entry.metadata_file)
            for one, metadata in part
            if metadata is not None and not one.why_not
            for entry in metadata.metadata_log
        }
    if folder.last[1] not in {candidate.metadata_location for candidate, _ in found}:
        found.append(_candidate(io, folder, *folder.last))
    return found


def _is_done(one: Candidate, found: Iterable[tuple[Candidate, TableMetadata | None]]) -> bool:
    """Whether a whole file of a higher number shows the same table."""
    return any(not other.why_not and other.table_uuid == one.table_uuid for other, _ in found)


def _candidate(io: FileIO, folder: _Folder, number: int, path: str) -> tuple[Candidate, TableMetadata | None]:
    found = Candidate(path, number)
    try:
        metadata = FromInputFile.table_metadata(io.new_input(path))
    except (OSError, ValueError, ValidationError) as error:
        return replace(found, why_not=f"cannot be read: {str(error).splitlines()[0][:120]}"), None
    found = replace(
        found,
        updated_ms=metadata.last_updated_ms,
        table_uuid=str(metadata.table_uuid),
        snapshot_id=metadata.current_snapshot_id,
        snapshots=len(metadata.snapshots),
    )
    if plain(metadata.location) != plain(folder.location):
        return replace(found, why_not=f"is of a table at {metadata.location}; move the warehouse with pkm"), metadata
    snapshot = metadata.current_snapshot()
    if snapshot is not None and not io.new_input(snapshot.manifest_list).exists():
        return replace(found, why_not=f"was not taken: the manifest list of {snapshot.snapshot_id} is gone"), metadata
    return found, metadata


def _watermarks(tables: Iterable[TableMetadata]) -> dict[str, set[int]]:
    """The snapshots that other tables have read, by table."""
    found: dict[str, set[int]] = defaultdict(set)
    for metadata in tables:
        for snapshot in metadata.snapshots:
            summary = snapshot.summary.additional_properties if snapshot.summary else {}
            for key, value in summary.items():
                if key.startswith(WATERMARK) and value.isdigit():
                    found[key.removeprefix(WATERMARK)].add(int(value))
    return found


def _judge(
    io: FileIO,
    folder: _Folder,
    read: list[tuple[Candidate, TableMetadata | None]],
    known: Set[int],
    choice: str | None,
) -> FoundTable:
    candidates = tuple(replace(one, confirmed=one.snapshot_id in known) for one, _ in read)
    if choice is not None:
        wanted = [one for one in candidates if plain(one.metadata_location) == plain(choice) and not one.why_not]
        if not wanted:
            listed = ", ".join(one.metadata_location for one in candidates if not one.why_not) or "none"
            raise StoreError(f"table {folder.name}: {choice} is none of its candidates ({listed})")
        return _found(folder, wanted[0], candidates)
    whole = [one for one in candidates if not one.why_not]
    whole = [one for one in whole if one.snapshots or one.metadata_location == folder.last[1]] or whole
    if not whole:
        reasons = "; ".join(f"{one.metadata_location} {one.why_not}" for one in candidates)
        return FoundTable(folder.name, doubt=f"no metadata file is usable: {reasons}", candidates=candidates)
    if len({one.table_uuid for one in whole}) > 1:
        return FoundTable(
            folder.name,
            doubt="one table was made here after another one; name the metadata file of the one that is wanted",
            candidates=candidates,
        )
    top = [one for one in whole if one.number == whole[0].number]
    told = [one for one in top if one.confirmed and one.snapshot_id is not None] or top
    if len({one.snapshot_id for one in told}) > 1:
        return FoundTable(
            folder.name,
            doubt=f"{len(told)} metadata files have the number {told[0].number}; name the right one",
            candidates=candidates,
        )
    newest = max(told, key=lambda one: (one.updated_ms, one.metadata_location))
    return _found(folder, newest, candidates)


def _found(folder: _Folder, newest: Candidate, candidates: tuple[Candidate, ...]) -> FoundTable:
    return FoundTable(folder.name, newest.metadata_location, newest.snapshot_id, newest.confirmed, "", candidates)
