"""Opening catalogs, and keeping their secrets."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.catalog.sql import SqlCatalog

from pkm_pipelines.model.errors import SettingsError, StoreError
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_catalog import open_catalog, warehouse_path
from pkm_pipelines.storage.location import Location
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import STATE, Place, contents, thing, write

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr%2Ft"


def test_a_sqlite_catalog_waits_and_writes_ahead(work: Path) -> None:
    catalog = open_catalog(f"sqlite:///{work}/deep/er/catalog.db", Location((work / "w").as_uri()))
    assert isinstance(catalog, SqlCatalog)
    with catalog.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # full: a commit survives a power cut


@pytest.mark.parametrize("url", ["mysql://me:pw@host/db", "catalog.db", ""])
def test_a_url_of_no_known_kind_is_refused(url: str, work: Path) -> None:
    with pytest.raises(SettingsError, match="is no catalog") as caught:
        open_catalog(url, Location(work.as_uri()))
    assert "pw" not in str(caught.value)


def test_a_sqlite_url_must_name_a_file(work: Path) -> None:
    with pytest.raises(SettingsError, match="names no file"):
        open_catalog("sqlite://", Location(work.as_uri()))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg2://me:{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:{SECRET}@127.0.0.1:1/db",
        f"postgresql+psycopg2://127.0.0.1:1/db?user=me&password={SECRET}",
        f"http://me:{SECRET}@127.0.0.1:1/catalog",
    ],
)
def test_no_password_is_shown(url: str, work: Path) -> None:
    store = IcebergStore(Location(work.as_uri()), url)
    with pytest.raises(StoreError, match="cannot be") as caught:
        store.load("silver.things")
    shown = repr(store) + str(caught.value) + repr(caught.value) + str(caught.value.__cause__)
    assert SECRET not in shown
    assert "s3cr/t" not in shown


def test_a_file_that_is_no_database_is_named(work: Path) -> None:
    file = work / "catalog.db"
    file.write_text("certainly not a database, and long enough to be noticed as such " * 40)
    with pytest.raises(StoreError, match=r"catalog\.db: cannot be opened: file is not a database"):
        open_catalog(f"sqlite:///{file}", Location(work.as_uri()))


@pytest.mark.parametrize("name", ["My Notes", "Zettel #1", "100%", "was?", "ünïcode 漢"])
def test_any_folder_may_hold_a_warehouse(name: str, work: Path) -> None:
    home = work / name
    place = Place((home / "warehouse").as_uri(), f"sqlite:///{home / 'catalog.db'}")
    place.open().ensure(STATE)
    assert (home / "warehouse" / "silver" / "things" / "metadata").is_dir()
    assert place.open().load(STATE.name).schema()


def test_urls_of_warehouses(work: Path) -> None:
    assert warehouse_path(Location("file:///a/My%20Notes/")) == "file:///a/My Notes"
    assert warehouse_path(Location("file:///a/%231")) == "/a/#1"
    assert warehouse_path(Location("s3://bucket/a/b/")) == "s3://bucket/a/b"


def test_a_glue_catalog_is_asked_with_the_keys_of_the_environment(glue: Place) -> None:
    store = glue.open()
    assert isinstance(store.catalog, GlueCatalog)
    manager = TableManager(store)
    manager.ensure(STATE)
    assert store.names() == [STATE.name]
    write(manager, STATE, [thing("a", 1), thing("b", 1)], watermarks={"one": 1})
    assert write(manager, STATE, [thing("a", 2, lsn=1)], op_id="op").rows_updated == 1
    again = TableManager(glue.open())
    assert {key: row["value"] for key, row in contents(again, STATE).items()} == {"a": 2, "b": 1}
    assert again.watermark(STATE.name, "one") == 1
    assert again.landed(STATE.name, "op")


def test_many_processes_open_a_new_catalog_at_once(work: Path) -> None:
    code = (
        "import sys; from tests.support.iceberg import STATE, Place\n"
        "sys.stdin.readline(); Place(sys.argv[1], sys.argv[2]).open().ensure(STATE); print('made')"
    )
    command = [sys.executable, "-W", "error", "-c", code, (work / "w").as_uri(), f"sqlite:///{work}/catalog.db"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in outcomes] == [b"made\n"] * 4, [error.decode()[-400:] for _, error in outcomes]
    with sqlite3.connect(work / "catalog.db") as database:
        assert database.execute("SELECT count(*) FROM iceberg_tables").fetchone() == (1,)
