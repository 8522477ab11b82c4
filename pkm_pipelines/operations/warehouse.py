"""Owning one's warehouse: tables of others made ours, ours made others', and all of it moved.

A move copies first, compares the copy with the original, and only then lets the catalog point to it, table by table. It
can be interrupted at any moment and asked again: what was copied is not copied again, and a switch that was under way
is finished. The old warehouse is never changed; whoever moved removes it when the new one has proved itself.
"""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pkm_pipelines.model.errors import CommitConflictError, SettingsError, StoreError
from pkm_pipelines.model.progress import NullProgress, Progress
from pkm_pipelines.storage.location import Location

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from pkm_pipelines.operations.stores import Stores
    from pkm_pipelines.storage.iceberg import IcebergStore
    from pkm_pipelines.storage.iceberg_compare import Comparison
    from pkm_pipelines.storage.iceberg_move import Copied, TableCopy

# Where a move writes down which switch of a table has to be finished.
JOURNAL = ".pkm-move"
WAIT_SECONDS = 3600.0
_ATTEMPTS = 5


@dataclass(frozen=True)
class MovedTable:
    """One table of a move. `rows` and `digest` are of its current snapshot, the same in both warehouses.

    `snapshots` is how many branches and tags were compared; `copied_files` and `copied_bytes` what this run copied.
    """

    table: str
    files: int
    bytes: int
    rows: int = 0
    digest: str = ""
    snapshots: int = 0
    copied_files: int = 0
    copied_bytes: int = 0
    metadata_location: str = ""


@dataclass(frozen=True)
class MoveReport:
    """What a move did, or would do (`dry_run`).

    `already` lie in the target, `elsewhere` in neither of the two warehouses: registered tables, which stay. `setting`
    is the line that `pkm.toml` must have from now on, `settings_file` the file that was changed, if any.
    """

    source: str
    target: str
    tables: tuple[MovedTable, ...]
    already: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    seconds: float = 0.0
    dry_run: bool = False
    setting: str = ""
    settings_file: str = ""


@dataclass
class _Moving:
    """The copy of one table while the move goes on."""

    name: str
    copy: TableCopy
    comparison: Comparison
    copied: Copied | None = None
    copied_from: str = ""
    files: int = 0
    bytes: int = 0


def register_table(stores: Stores, name: str, metadata_location: str) -> int | None:
    """Make an existing Iceberg table one of this catalog, by its newest metadata file; its current snapshot.

    Whoever had it must not write to it any more. Raises `StoreError` if the name is taken or the table cannot be read.
    """
    from pkm_pipelines.storage.iceberg_register import register

    return register(stores.iceberg, name, metadata_location).metadata.current_snapshot_id


def unregister_table(stores: Stores, name: str) -> str:
    """Take a table out of the catalog; no file is deleted. Answers the URL to register it by, here or elsewhere.

    Raises `TableNotFoundError`.
    """
    from pkm_pipelines.storage.iceberg_register import unregister

    with alone(stores, name):
        return unregister(stores.iceberg, name)


def move_warehouse(
    stores: Stores,
    target_url: str,
    *,
    progress: Progress | None = None,
    dry_run: bool = False,
    settings_file: Path | None = None,
) -> MoveReport:
    """Move every table of the warehouse to another URL; with `settings_file` that file names it from then on.

    Writers go on while tables are copied; each table is held for as long as it takes to copy what came meanwhile, to
    compare and to switch. When all of them are switched the setting `warehouse` must be changed before anything is
    written: new tables would else lie in the old warehouse, and with another kind of store the moved ones cannot be
    reached.

    Raises `StoreError` if a copy is not the same as the original (then nothing of that table has changed),
    `SettingsError` for a target inside of the warehouse, `LeaseHeldError`, `CancelledError`.
    """
    from pkm_pipelines.storage.endpoint import probe
    from pkm_pipelines.storage.iceberg import IcebergStore
    from pkm_pipelines.storage.iceberg_compare import Comparison
    from pkm_pipelines.storage.iceberg_move import TableCopy, measure, target_io

    began = time.monotonic()
    progress = progress or NullProgress()
    source, target = stores.iceberg.warehouse, _target(stores, target_url)
    moved_store = IcebergStore(target, stores.iceberg.catalog_url)
    if not dry_run:
        probe(target)
        _finish_switches(moved_store, target)
    places = _places(stores.iceberg, source, target)
    names = [name for name, place in places.items() if place == "source"]
    tables: list[MovedTable] = []
    if dry_run:
        for name in names:
            progress.check_cancelled()
            files, size = measure(stores.iceberg.load(name))
            tables.append(MovedTable(name, files, size, rows=stores.tables.stats(name).rows))
    else:
        io = target_io(stores.iceberg.catalog, target)
        moving = [_Moving(name, TableCopy(source, target, io, progress), Comparison(progress)) for name in names]
        for one in moving:
            _copy(stores.iceberg, one, progress)
        tables = [_switch(stores, moved_store, target, one, progress) for one in moving]
        if settings_file is not None:
            set_warehouse(settings_file, target.url)
    return MoveReport(
        source.url,
        target.url,
        tuple(tables),
        already=tuple(name for name, place in places.items() if place == "target"),
        elsewhere=tuple(name for name, place in places.items() if place == "elsewhere"),
        seconds=time.monotonic() - began,
        dry_run=dry_run,
        setting=f"warehouse = {json.dumps(target.url)}",
        settings_file=str(settings_file) if settings_file is not None and not dry_run else "",
    )


def set_warehouse(file: Path, url: str) -> None:
    """Change the setting `warehouse` of a `pkm.toml`, and nothing else in it; raises `SettingsError`."""
    line = f"warehouse = {json.dumps(url)}"
    try:
        text = file.read_text(encoding="utf-8")
        before = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: cannot be read: {error}; put this into it: {line}") from None
    table = re.search(r"(?m)^[ \t]*\[", text)
    start = len(text) if table is None else table.start()
    head, count = re.subn(r"(?m)^[ \t]*warehouse[ \t]*=.*$", lambda _: line, text[:start], count=1)
    changed = (head if count else f"{line}\n{head}") + text[start:]
    try:
        is_right = tomllib.loads(changed) == {**before, "warehouse": url}
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:  # written in a way that one line cannot change
        raise SettingsError(f"{file}: cannot be changed safely; put this into it: {line}")
    temporary = file.with_name(f".{file.name}.new")
    try:
        temporary.write_text(changed, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise SettingsError(f"{file}: cannot be written: {error.strerror}; put this into it: {line}") from None


@contextmanager
def alone(stores: Stores, name: str) -> Generator[None]:
    """Hold a table from the project's writers and from maintenance."""
    ttl = stores.settings.lease_seconds
    with (
        stores.state.acquire(f"maintain:{name}", ttl_seconds=ttl, wait_seconds=WAIT_SECONDS),
        stores.state.acquire(f"table:{name}", ttl_seconds=ttl, wait_seconds=WAIT_SECONDS),
    ):
        yield


def _copy(store: IcebergStore, one: _Moving, progress: Progress) -> Table:
    """Copy a table as it is now; again from the start if a file went while it was being read."""
    for attempt in range(_ATTEMPTS):
        table = store.load(one.name)
        if one.copied is not None and table.metadata_location == one.copied_from:
            return table
        progress.stage(f"copy {one.name}", unit="files")
        try:
            one.copied = one.copy.copy(table)
        except FileNotFoundError as error:
            if store.load(one.name).metadata_location == table.metadata_location or attempt + 1 == _ATTEMPTS:
                raise StoreError(f"table {one.name}: one of its files is missing: {error}") from None
            continue
        one.copied_from = table.metadata_location
        one.files += one.copied.copied_files
        one.bytes += one.copied.copied_bytes
        return table
    raise AssertionError("unreachable")


def _switch(
    stores: Stores, moved_store: IcebergStore, target: Location, one: _Moving, progress: Progress
) -> MovedTable:
    """Compare the copy of a table with it, and let the catalog point to the copy."""
    with alone(stores, one.name):
        for _ in range(_ATTEMPTS - 1):
            try:
                return _try_switch(stores.iceberg, moved_store, target, one, progress)
            except CommitConflictError:  # by an engine that knows nothing of our leases
                progress.note(f"{one.name} was written to while it was compared; what is new is copied too")
        return _try_switch(stores.iceberg, moved_store, target, one, progress)


def _try_switch(
    store: IcebergStore, moved_store: IcebergStore, target: Location, one: _Moving, progress: Progress
) -> MovedTable:
    from pkm_pipelines.storage.iceberg_register import repoint

    table = _copy(store, one, progress)
    copied = one.copied
    assert copied is not None
    contents = one.comparison.compare(table, one.copy.table(table), copied)
    journal = _Journal(target, one.name, copied.metadata_location)
    repoint(moved_store, one.name, table.metadata_location, copied.metadata_location, announce=journal.write)
    journal.remove()
    main = contents.get("main")
    return MovedTable(
        one.name,
        copied.files,
        copied.bytes,
        rows=main.rows if main else 0,
        digest=main.digest if main else "",
        snapshots=len(contents),
        copied_files=one.files,
        copied_bytes=one.bytes,
        metadata_location=copied.metadata_location,
    )


@dataclass(frozen=True)
class _Journal:
    """One line in the target that says where a table goes, while the catalog may not have it."""

    target: Location
    table: str
    metadata_location: str

    @property
    def _path(self) -> str:
        return f"{JOURNAL}/{self.table}.json"

    def write(self) -> None:
        """Write it down."""
        import obstore

        from pkm_pipelines.storage.endpoint import open_store

        line = json.dumps({"table": self.table, "metadata_location": self.metadata_location}).encode()
        obstore.put(open_store(self.target), self._path, line, mode="overwrite", use_multipart=False)

    def remove(self) -> None:
        """It is done."""
        import obstore

        from pkm_pipelines.storage.endpoint import open_store

        store = open_store(self.target)
        if any(entry["path"] == self._path for page in store.list(f"{JOURNAL}/") for entry in page):
            obstore.delete(store, self._path)

    @classmethod
    def all(cls, target: Location) -> Sequence[_Journal]:
        """Those that were left."""
        import obstore

        from pkm_pipelines.storage.endpoint import open_store

        store = open_store(target)
        paths = [entry["path"] for page in store.list(f"{JOURNAL}/") for entry in page]
        lines = [json.loads(bytes(obstore.get(store, path).bytes())) for path in paths]
        return [cls(target, line["table"], line["metadata_location"]) for line in lines]


def _finish_switches(moved_store: IcebergStore, target: Location) -> None:
    """Enter the tables that a move had taken out of the catalog when it was killed."""
    from pkm_pipelines.storage.iceberg_register import put

    for journal in _Journal.all(target):
        if journal.table not in moved_store.names():
            put(moved_store, journal.table, journal.metadata_location)
        journal.remove()


def _places(store: IcebergStore, source: Location, target: Location) -> dict[str, str]:
    """Each table, and whether it lies in the source, the target, or elsewhere."""
    from pkm_pipelines.storage.iceberg_catalog import warehouse_path
    from pkm_pipelines.storage.iceberg_move import plain
    from pkm_pipelines.storage.iceberg_register import location_of

    roots = [(name, f"{plain(warehouse_path(root))}/") for name, root in (("target", target), ("source", source))]
    found: dict[str, str] = {}
    for table in store.names():
        location = plain(location_of(store, table))
        found[table] = next((name for name, root in roots if location.startswith(root)), "elsewhere")
    return found


def _target(stores: Stores, url: str) -> Location:
    if not url.startswith(("file:///", "s3://")):
        raise SettingsError(f"{url}: a warehouse is a file:/// or s3:// URL")
    target = Location(url.rstrip("/"))
    source = stores.iceberg.warehouse.url.rstrip("/")
    if f"{target.url}/".startswith(f"{source}/") or f"{source}/".startswith(f"{target.url}/"):
        raise SettingsError(f"{url}: must lie beside the warehouse {source}, and neither in it nor around it")
    return target
