"""Opening the Iceberg catalog that a URL names, and the files beside it.

| URL | catalog |
|---|---|
| `sqlite:///path` | a file, for one machine: write-ahead log and a busy timeout, so that writers wait for each other |
| `postgresql://…` | a PostgreSQL database |
| `glue://` | AWS Glue, with the region and keys of `AWS_*` (`AWS_ENDPOINT_URL_GLUE` for an emulator) |
| `https://…`, `http://…` | a REST catalog; `client-id:secret@` before the host logs in by OAuth 2 |

A REST catalog's bearer token is read from `PYICEBERG_CATALOG__PKM__TOKEN`, pyiceberg's own variable. A password
never leaves this module: errors name the URL without it.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from pyarrow.fs import FileSystem, S3FileSystem
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import ServiceUnavailableError
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.typedef import EMPTY_DICT, Properties
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import Timeout
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError, SQLAlchemyError

from pkm_pipelines.model.errors import SettingsError, StoreError
from pkm_pipelines.model.urls import redacted
from pkm_pipelines.storage.location import Location, S3Options

CATALOG = "pkm"
BUSY_SECONDS = 60
_FILE_IO = f"{__name__}.SharedFileIO"

# The catalog did not answer, or not clearly: what it was asked to do may or may not have happened.
UNREACHABLE = (OperationalError, InterfaceError, RequestsConnectionError, Timeout, ServiceUnavailableError)

# pyiceberg's words for access to S3, and pyarrow's.
_PLAIN_S3 = {
    "s3.region": "region",
    "s3.endpoint": "endpoint_override",
    "s3.access-key-id": "access_key",
    "s3.secret-access-key": "secret_key",
    "s3.session-token": "session_token",
}

T = TypeVar("T")


def open_catalog(url: str, warehouse: Location) -> Catalog:
    """Open the catalog at `url`, whose tables lie in `warehouse`, and create it if it is a database without tables.

    Raises `SettingsError` for a URL of no known kind and `StoreError` if the catalog cannot be reached.
    """
    scheme = urlsplit(url).scheme
    properties = {"warehouse": warehouse_path(warehouse), "py-io-impl": _FILE_IO}
    if not warehouse.is_local:
        properties |= warehouse.s3().pyiceberg()
    try:
        if scheme == "sqlite":
            return _sqlite(url, properties)
        if scheme == "postgresql":
            # SQLAlchemy's own choice of a driver is another one than the project installs.
            url = url.replace(scheme, "postgresql+psycopg2", 1)
        if scheme.partition("+")[0] == "postgresql":
            return _sql(url, {**properties, "pool_pre_ping": "true"})
        if scheme == "glue":
            return _glue(properties)
        if scheme in ("http", "https"):
            return _rest(url, properties)
    except (SQLAlchemyError, sqlite3.Error, RequestsConnectionError, Timeout, OSError) as error:
        raise StoreError(f"catalog {redacted(url)}: cannot be opened: {reason(error, url)}") from None
    raise SettingsError(
        f"catalog: {redacted(url)} is no catalog; use sqlite:///path, postgresql://…, glue:// or https://…"
    )


def reason(error: BaseException, url: str) -> str:
    """The first line of what `error` says, without the secrets of `url`."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = (str(cause) or type(cause).__name__).strip().splitlines()[0]
    for secret in _secrets(url):
        text = text.replace(secret, "***")
    return text


def warehouse_path(warehouse: Location) -> str:
    """The warehouse as pyiceberg wants it.

    It takes URLs literally, without decoding `%20`; and where a folder's name holds a character that would end the
    path of a URL, only a plain path can name it.
    """
    if not warehouse.is_local:
        return warehouse.url.rstrip("/")
    path = str(warehouse.path).rstrip("/")
    return path if any(character in path for character in "#?%") else f"file://{path}"


def patiently(ask: Callable[[], T], url: str) -> T:
    """Ask the catalog something that changes nothing, again for some seconds while it cannot be reached."""
    for attempt in range(6):
        try:
            return ask()
        except UNREACHABLE as error:
            if attempt == 5:
                raise StoreError(f"catalog {redacted(url)}: cannot be reached: {reason(error, url)}") from None
            pause(attempt)
    raise AssertionError("unreachable")


def pause(attempt: int, *, first_seconds: float = 0.02, longest_seconds: float = 2.0) -> None:
    """Sleep before another attempt: exponential backoff with full jitter, so that rivals do not march in step."""
    time.sleep(random.uniform(0, min(longest_seconds, first_seconds * 2**attempt)))  # noqa: S311


class SharedFileIO(PyArrowFileIO):
    """pyiceberg's Arrow file IO with one file system for the process and not one for each load of a table.

    On S3 that keeps connections open between commits.
    """

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        relevant = tuple(sorted((k, str(v)) for k, v in properties.items() if k.startswith(("s3.", "client."))))
        self.fs_by_scheme = partial(_file_system, os.getpid(), relevant)


@lru_cache(maxsize=16)
def _file_system(process: int, properties: tuple[tuple[str, str], ...], scheme: str, netloc: str | None) -> FileSystem:
    """The file system; `process` is part of the key because S3 clients do not survive a fork."""
    options = dict(properties)
    if scheme in ("s3", "s3a", "s3n") and options.keys() <= _PLAIN_S3.keys():
        # Opened when it is written to, so that a small file takes one request and not the three of a multipart upload.
        return S3FileSystem(**{_PLAIN_S3[key]: value for key, value in options.items()}, allow_delayed_open=True)
    return PyArrowFileIO(options).fs_by_scheme(scheme, netloc)


def _sqlite(url: str, properties: dict[str, str]) -> Catalog:
    parsed = make_url(url)
    if not parsed.database or parsed.database == ":memory:":
        raise SettingsError(f"catalog: {url} names no file; use sqlite:///path/to/catalog.db")
    file = Path(parsed.database)
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_ahead_log(file)
    patient = parsed.update_query_dict({"timeout": str(BUSY_SECONDS)})
    return _sql(patient.render_as_string(hide_password=False), properties)


def _write_ahead_log(file: Path) -> None:
    """Switch the database to a write-ahead log once; the switch itself does not wait for other connections."""
    deadline = time.monotonic() + BUSY_SECONDS
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS)
    try:
        while True:
            try:
                if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                pause(2)
    finally:
        connection.close()


def _sql(url: str, properties: dict[str, str]) -> Catalog:
    from pkm_pipelines.storage.pyiceberg_private import WarmSqlCatalog

    for attempt in range(8):
        try:
            return WarmSqlCatalog(CATALOG, uri=url, **properties)
        except (OperationalError, ProgrammingError, DBAPIError):
            # Several processes create the catalog's tables at once: only one can, the others find them then.
            if attempt == 7:
                raise
            pause(attempt, first_seconds=0.05)
    raise AssertionError("unreachable")


def _glue(properties: dict[str, str]) -> Catalog:
    from pyiceberg.catalog.glue import GlueCatalog

    aws = S3Options.from_environment()
    glue = {
        "glue.region": aws.region,
        "glue.endpoint": os.environ.get("AWS_ENDPOINT_URL_GLUE") or os.environ.get("AWS_ENDPOINT_URL"),
        "glue.access-key-id": aws.access_key_id,
        "glue.secret-access-key": aws.secret_access_key,
        "glue.session-token": aws.session_token,
    }
    return GlueCatalog(CATALOG, **properties, **{key: value for key, value in glue.items() if value})


def _rest(url: str, properties: dict[str, str]) -> Catalog:
    parts = urlsplit(url)
    login: dict[str, str] = {}
    if parts.username and parts.password:
        login["credential"] = f"{unquote(parts.username)}:{unquote(parts.password)}"
    plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
    return load_catalog(CATALOG, type="rest", uri=plain, **login, **properties)


def _secrets(url: str) -> list[str]:
    parts = urlsplit(url)
    found = [parts.password or "", parts.query]
    return [secret for part in found for secret in (part, unquote(part)) if secret]
