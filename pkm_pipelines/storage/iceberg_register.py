"""Which metadata file a catalog has for a table: registered, taken out, or replaced by another one.

A catalog holds one thing for each table, the URL of its newest metadata file. So a table of another catalog or engine
becomes ours by registering that file, and ours becomes a table of another catalog in the same way. From then on only
one of the two may write to it: two catalogs do not see each other's commits, and the later one would undo the
earlier. Nothing here deletes a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import (
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.io import FileIO, load_file_io
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Table
from sqlalchemy import CursorResult, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pkm_pipelines.model.errors import CommitConflictError, StoreError, TableNotFoundError
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_avro import read_rows
from pkm_pipelines.storage.iceberg_catalog import patiently
from pkm_pipelines.storage.iceberg_move import read_metadata

_PROBED_FILES = 1


def register(store: IcebergStore, name: str, metadata_location: str) -> Table:
    """Make the table whose newest metadata file is at `metadata_location` the table `name` of this catalog.

    Raises `StoreError` if the name is taken, if the file is not one of Iceberg's, if its snapshot cannot be read, or if
    the same table is in the catalog already: under two names it would have two histories.
    """
    layer, _, table = name.rpartition(".")
    if not layer or not table:
        raise StoreError(f"{name!r}: a table is called <layer>.<name>")
    metadata_location = _spelled(metadata_location)
    io = file_io(store, metadata_location)
    raw = _readable(io, metadata_location)
    if store.exists(name):
        raise StoreError(f"table {name}: there is one of that name already; choose another name")
    for other in store.names():
        if str(store.load(other).metadata.table_uuid) == raw["table-uuid"]:
            raise StoreError(
                f"{metadata_location}: is the table {other} of this catalog; under two names each would undo what is "
                "written by the other"
            )
    check_readable(io, metadata_location)
    return put(store, name, metadata_location)


def put(store: IcebergStore, name: str, metadata_location: str) -> Table:
    """Enter a table without looking at its files; raises `StoreError` if the name is taken."""
    layer = name.rpartition(".")[0]
    with contextlib.suppress(NamespaceAlreadyExistsError, IntegrityError):
        patiently(lambda: store.catalog.create_namespace_if_not_exists(layer), store.catalog_url)
    try:
        return store.catalog.register_table(name, metadata_location)
    except (TableAlreadyExistsError, IntegrityError):
        raise StoreError(f"table {name}: there is one of that name already; choose another name") from None


def unregister(store: IcebergStore, name: str) -> str:
    """Take a table out of the catalog and leave all its files; answers its metadata file, to register it elsewhere.

    No file is read, so one whose files are gone can be taken out too. What a REST catalog has of such a table it may
    not tell: then the answer is empty. Raises `TableNotFoundError`.
    """
    try:
        location = entry_of(store, name)
    except TableNotFoundError:
        raise
    except StoreError:
        location = ""
    try:
        store.catalog.drop_table(name)
    except (NoSuchTableError, NoSuchNamespaceError):
        raise TableNotFoundError(f"there is no table {name} (any more)") from None
    return location


def repoint(
    store: IcebergStore,
    name: str,
    expected: str,
    upcoming: str,
    *,
    announce: Callable[[], None],
) -> None:
    """Let the catalog have `upcoming` as the metadata file of a table, if it still has `expected`.

    One step in a SQL catalog. The others cannot replace a file that is not made from the one before, so there the table
    is taken out and entered anew; `announce` is called right before that, to write down what has to be finished by
    whoever comes after a crash (`put`). Raises `CommitConflictError` if the table has moved on, and
    `TableNotFoundError`.
    """
    if isinstance(store.catalog, SqlCatalog):
        _update(store.catalog, name, expected, upcoming)
        return
    if entry_of(store, name) != expected:
        raise _moved_on(name)
    announce()
    unregister(store, name)
    put(store, name, upcoming)


def entry_of(store: IcebergStore, name: str) -> str:
    """The metadata file that the catalog names for a table.

    It is not read, except by a REST catalog, which has no other answer. Raises `TableNotFoundError`, and `StoreError`
    if a REST catalog cannot read it.
    """
    layer, _, table = name.rpartition(".")
    catalog, location = store.catalog, None
    if not layer:
        pass
    elif isinstance(catalog, SqlCatalog):
        location = patiently(lambda: _sql_entry(catalog, layer, table), store.catalog_url)
    elif store.catalog_url.startswith("glue:"):
        location = _glue_entry(catalog, layer, table)
    else:
        location = store.load(name).metadata_location
    if location is None:
        raise TableNotFoundError(f"there is no table {name} (any more)")
    return location


def location_of(store: IcebergStore, name: str) -> str:
    """Where a table lies, also one whose files this catalog is not set up to reach; raises `TableNotFoundError`."""
    folder, separator, _ = entry_of(store, name).rpartition("/metadata/")
    return folder if separator else store.load(name).metadata.location


def file_io(store: IcebergStore, location: str) -> FileIO:
    """The files at a URL, reached as those of the warehouse are."""
    return load_file_io(dict(store.catalog.properties), location)


def check_readable(io: FileIO, metadata_location: str) -> None:
    """Raise `StoreError` unless the current snapshot's manifests can be read and its data can be reached."""
    metadata = FromInputFile.table_metadata(io.new_input(metadata_location))
    snapshot = metadata.current_snapshot()
    if snapshot is None:
        return
    try:
        for manifest in read_rows(io.new_input(snapshot.manifest_list)):
            for entry in list(read_rows(io.new_input(manifest["manifest_path"])))[:_PROBED_FILES]:
                path = entry["data_file"]["file_path"]
                if entry["status"] != 2 and not io.new_input(path).exists():
                    raise FileNotFoundError(path)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{metadata_location}: the table's files cannot be read from here: {str(error).splitlines()[0]}"
        ) from None


def _readable(io: FileIO, location: str) -> dict[str, object]:
    try:
        return read_metadata(io, location)
    except FileNotFoundError:
        raise StoreError(
            f"{location}: there is no such file; name the newest <number>-<id>.metadata.json of the table"
        ) from None
    except OSError as error:
        raise StoreError(f"{location}: cannot be read: {str(error).splitlines()[0]}") from None


def _spelled(location: str) -> str:
    """A local path as a URL if it can be one."""
    if location.startswith("/") and not set(location) & set("#?%"):
        return f"file://{location}"
    return location


def _sql_entry(catalog: SqlCatalog, layer: str, table: str) -> str | None:
    row = (
        IcebergTables.catalog_name == catalog.name,
        IcebergTables.table_namespace == layer,
        IcebergTables.table_name == table,
    )
    with Session(catalog.engine) as session:
        return session.scalar(select(IcebergTables.metadata_location).where(*row))


def _glue_entry(catalog: Catalog, layer: str, table: str) -> str | None:
    glue = cast("Any", catalog).glue
    try:
        found = glue.get_table(DatabaseName=layer, Name=table)["Table"]
    except glue.exceptions.EntityNotFoundException:
        return None
    return found.get("Parameters", {}).get("metadata_location")


def _update(catalog: SqlCatalog, name: str, expected: str, upcoming: str) -> None:
    layer, _, table = name.rpartition(".")
    row = (
        IcebergTables.catalog_name == catalog.name,
        IcebergTables.table_namespace == layer,
        IcebergTables.table_name == table,
        IcebergTables.metadata_location == expected,
    )
    values = {"metadata_location": upcoming, "previous_metadata_location": expected}
    with Session(catalog.engine) as session:
        changed = cast("CursorResult[Any]", session.execute(update(IcebergTables).where(*row).values(**values)))
        session.commit()
    if not changed.rowcount:
        raise _moved_on(name)


def _moved_on(name: str) -> CommitConflictError:
    return CommitConflictError(
        f"table {name} was written to while it was to be switched; nothing was changed, try again"
    )
