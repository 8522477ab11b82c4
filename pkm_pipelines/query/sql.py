"""SQL over the tables: one read-only statement, in a DuckDB that can see the lakehouse and nothing else.

DuckDB's own parser says which tables and table functions a statement names (`json_serialize_sql`), so what is
checked is what will run. Only those tables are registered, as views over their present metadata file; then
external access is shut to all but their folders, and the configuration is locked. Two layers, because each has
a gap: the lance extension reads files past DuckDB's own guard, and a parser alone does not know every function.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from pkm_pipelines.model.errors import QueryError
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.location import Location, S3Options

if TYPE_CHECKING:
    import duckdb

# The vectors of the model in the settings. They go by the whole name of their table, too, which tells the model.
VECTORS = "vectors.note_embeddings"
ALLOWED = "SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE, PIVOT with its values named, or EXPLAIN of these"
# Functions that make rows from their arguments and read no file.
TABLE_FUNCTIONS = frozenset({"unnest", "range", "generate_series", "json_each", "json_tree", "repeat", "repeat_row"})
# DuckDB's own answer holds the names and types of all columns; who asks which tables there are wants to read it.
_LIST_OF_TABLES = "SELECT schema, name, len(column_names) AS columns FROM (SHOW ALL TABLES) ORDER BY schema, name"
_NAME = re.compile(r"[^\W\d]\w*")
_BATCH_ROWS = 10_000


class StoredTables(Mapping[str, str]):
    """Every table by its name in SQL; a value is the URL of its metadata file or dataset, looked up when asked for."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def __getitem__(self, name: str) -> str:
        if name not in self:
            raise KeyError(name)
        if _is_vectors(name):
            table = self._stores.vector_table
            assert table is not None
            return self._stores.vectors.location(table).url
        return self._stores.tables.metadata_location(name)

    def __iter__(self) -> Iterator[str]:
        yield from self._stores.iceberg.names()
        if VECTORS in self:
            yield VECTORS

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        if isinstance(name, str) and _is_vectors(name):
            table = self._stores.vector_table
            return table is not None and name in (VECTORS, table) and self._stores.vectors.exists(table)
        return isinstance(name, str) and name.count(".") == 1 and self._stores.iceberg.exists(name)


def sql(stores: Stores, query: str, *, limit: int | None = None) -> pa.Table:
    """The rows that `query` answers with, at most `limit`.

    Tables go by `bronze.raw_notes`, or by `raw_notes` alone. Timestamps are UTC. Each table is read at the snapshot
    that is current when the query starts. Raises `QueryError` for anything but one statement that reads, and
    for an unknown table, naming those there are.
    """
    return query_tables(query, StoredTables(stores), limit=limit, spill_dir=stores.settings.spill_dir)


def query_tables(
    query: str, tables: Mapping[str, str], *, limit: int | None = None, spill_dir: Path | None = None
) -> pa.Table:
    """As `sql`, over `tables`: SQL name → URL of an Iceberg metadata file (`…/metadata/….json`) or a Lance dataset."""
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            # Views are made from URLs alone: no Python variable, download or home folder comes into play.
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_persistent_secrets": False,
            "temp_directory": str(spill_dir or ""),
        },
    )
    try:
        statement = _analyse(connection, query)
        named = _resolve(statement, tables)
        _register(connection, {name: tables[name] for name in sorted(set(named.values()))}, named)
        return _interruptible(connection, lambda: _fetch(connection.execute(statement.text), limit))
    except duckdb.Error as error:
        raise QueryError(_message(error)) from None
    finally:
        connection.close()


@dataclass(frozen=True)
class Statement:
    """What a query names: tables as (schema, table), and whether it asks which tables there are."""

    text: str
    tables: frozenset[tuple[str, str]]
    lists_tables: bool


def _analyse(connection: duckdb.DuckDBPyConnection, query: str) -> Statement:
    statements = connection.extract_statements(query)
    if not statements:
        raise QueryError("the query is empty")
    if len(statements) > 1:
        if [statement.type.name for statement in statements] == ["CREATE", "SELECT"] and "pivot" in query.lower():
            # Its columns come from the data, so it parses into two statements, the first of which makes a type.
            raise QueryError("a PIVOT must name its values: PIVOT t ON c IN ('a', 'b') USING count(*)")
        raise QueryError("the query holds several statements; run them one at a time")
    inner = _explained(query) if statements[0].type.name == "EXPLAIN" else query
    row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [inner]).fetchone()
    tree: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    if tree["error"]:
        raise QueryError(f"only statements that read are allowed: {ALLOWED}")
    found: set[tuple[str, str]] = set()
    defined: set[str] = set()
    lists_tables = False
    for node in _nodes(tree["statements"]):
        kind = node.get("type")
        if kind == "TABLE_FUNCTION":
            function = node["function"]["function_name"]
            if function.lower() not in TABLE_FUNCTIONS:
                raise QueryError(
                    f"the table function {function} is not allowed (allowed: {', '.join(sorted(TABLE_FUNCTIONS))})"
                )
        elif kind == "BASE_TABLE":
            if node.get("catalog_name"):
                raise QueryError(f"there is no catalog {node['catalog_name']!r}; a table is named by schema and name")
            found.add((node["schema_name"].lower(), node["table_name"].lower()))
        elif kind == "SHOW_REF" and node.get("query") is None:
            lists_tables = True
        defined |= {str(entry["key"]).lower() for entry in (node.get("cte_map") or {}).get("map", ())}
    # A name that a WITH defines is no table. A file name can never pass for one: `WITH "x.lance" AS …` elsewhere in
    # the query does not cover it.
    tables = frozenset(pair for pair in found if pair[0] or pair[1] not in defined or not _NAME.fullmatch(pair[1]))
    lists_tables = lists_tables or any(schema == "information_schema" for schema, _ in tables)
    asked = tree["statements"][0]["node"].get("from_table", {})
    is_show_tables = inner == query and asked.get("type") == "SHOW_REF" and asked["table_name"] == '"tables"'
    return Statement(_LIST_OF_TABLES if is_show_tables else query, tables, lists_tables)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON document, without recursion: a query may nest deeper than Python's stack."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _explained(query: str) -> str:
    """What an EXPLAIN explains: the text after EXPLAIN, ANALYZE and options in parentheses."""
    import duckdb

    # Offsets are of UTF-8 bytes. A slice begins with its token; blanks and comments may follow.
    data = query.encode()
    starts = [start for start, _ in duckdb.tokenize(query)]
    slices = [data[start:end].decode().lower() for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    position = 1
    if slices[position].startswith("analyze"):
        position += 1
    if slices[position].startswith("(") and not slices[position + 1].startswith(("select", "with", "from", "(")):
        position = next(n for n in range(position, len(slices)) if slices[n].startswith(")")) + 1
    return data[starts[position] :].decode()


def _resolve(statement: Statement, tables: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Which of `tables` each name of the statement means."""
    if statement.lists_tables:
        return {(name.split(".", 1)[0], name.split(".", 1)[1]): name for name in tables}
    resolved: dict[tuple[str, str], str] = {}
    for schema, table in sorted(statement.tables):
        called = f"{schema}.{table}" if schema else table
        # All names are asked for only where a part is missing: it means looking into each store.
        matches = (
            [called] if called in tables else [name for name in tables if not schema and name.endswith(f".{table}")]
        )
        if len(matches) != 1:
            names = list(tables)
            if not names:
                raise QueryError(f"there is no table {called}: the lakehouse is empty; fill it with `pkm run`")
            raise QueryError(f"there is no table {called}; there are: {', '.join(names)}")
        resolved[schema, table] = matches[0]
    return resolved


def _register(
    connection: duckdb.DuckDBPyConnection, urls: Mapping[str, str], named: Mapping[tuple[str, str], str]
) -> None:
    """Make a view of each table, then shut the door."""
    # Avro before Iceberg, whose manifests are Avro.
    extensions = ["avro", "iceberg"] if not all(map(_is_vectors, urls)) else []
    extensions += ["lance"] if any(map(_is_vectors, urls)) else []
    extensions += ["httpfs"] if any(url.startswith("s3://") for url in urls.values()) else []
    for extension in extensions:
        load_extension(connection, extension)
    folders: list[str] = []
    for name, url in urls.items():
        location = Location(url)
        if not location.is_local:
            _create_secret(connection, name, location)
        if _is_vectors(name):
            scan = _literal(str(location.path) if location.is_local else url)
        else:
            scan = f"iceberg_scan({_literal(url)})"
            root = url.rsplit("/metadata/", 1)[0] + "/"
            # Iceberg's files name each other by URL; DuckDB opens a local one by either spelling.
            folders += [root, unquote(urlsplit(root).path)] if location.is_local else [root]
        for schema, table in [pair for pair, meant in named.items() if meant == name]:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_identifier(schema or 'main')}")
            view = f"{_identifier(schema or 'main')}.{_identifier(table)}"
            connection.execute(f"CREATE VIEW {view} AS SELECT * FROM {scan}")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"SET allowed_directories = [{', '.join(_literal(folder) for folder in folders)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def load_extension(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Load an extension of DuckDB where its wheel has it; raises `QueryError` if there is none.

    (The wheels' own helper copies it to the home folder first: 250 MB.)
    """
    try:
        module = importlib.import_module(f"duckdb_extension_{name}")
    except ModuleNotFoundError:
        raise QueryError(f"the package duckdb-extension-{name} is not installed; run `make venv` again") from None
    folder = Path(str(module.__path__[0])) / "extensions"
    files = list(folder.glob(f"*/{name}.duckdb_extension"))
    if not files:
        raise QueryError(f"the package duckdb-extension-{name} has no extension for this system")
    connection.execute(f"LOAD {_literal(str(files[0]))}")


def _create_secret(connection: duckdb.DuckDBPyConnection, name: str, location: Location) -> None:
    """Hand the credentials of the `AWS_*` variables to the extension that reads the table."""
    import duckdb

    options = location.s3()
    scope = f"SCOPE {_literal(f's3://{location.bucket}/')}"
    if _is_vectors(name):
        pairs = options.object_store()
        listed = ", ".join(f"{_literal(key)}: {_literal(value)}" for key, value in pairs.items())
        body = f"TYPE lance, PROVIDER config, {scope}, STORAGE_OPTIONS MAP {{{listed}}}"
    else:
        body = f"TYPE s3, PROVIDER config, {scope}, {_s3_parameters(options)}"
    try:
        connection.execute(f"CREATE OR REPLACE TEMPORARY SECRET {_identifier(f'of {name}')} ({body})")
    except duckdb.Error:
        # The statement holds the key pair, and so might the message.
        raise QueryError("DuckDB does not accept the AWS_* variables; check them") from None


def _s3_parameters(options: S3Options) -> str:
    parameters = {
        "KEY_ID": options.access_key_id,
        "SECRET": options.secret_access_key,
        "SESSION_TOKEN": options.session_token,
        "REGION": options.region,
    }
    if options.endpoint:
        parts = urlsplit(options.endpoint)
        parameters |= {
            "ENDPOINT": parts.netloc + parts.path.rstrip("/"),
            "URL_STYLE": "path",
            "USE_SSL": "false" if options.allow_http else "true",
        }
    return ", ".join(f"{key} {_literal(value)}" for key, value in parameters.items() if value)


def _is_vectors(name: str) -> bool:
    return name == VECTORS or name.startswith(f"{VECTORS}__")


def _interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], pa.Table]) -> pa.Table:
    """Do `work` in another thread: one that waits inside DuckDB would not hear a Ctrl-C until the query is done."""
    with ThreadPoolExecutor(1, thread_name_prefix="sql") as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            connection.interrupt()
            raise


def _fetch(result: duckdb.DuckDBPyConnection, limit: int | None) -> pa.Table:
    """The first `limit` rows; no more than a batch beyond them is computed."""
    reader = result.to_arrow_reader(_BATCH_ROWS)
    batches: list[pa.RecordBatch] = []
    left = limit
    for batch in reader:
        batches.append(batch if left is None else batch.slice(0, left))
        if left is not None:
            left -= batches[-1].num_rows
            if left <= 0:
                break
    return pa.Table.from_batches(batches, schema=reader.schema)


def _message(error: duckdb.Error) -> str:
    """The first line of an error, and the line of candidates that may follow it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or ["the query failed"]
    hints = [line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))]
    return " ".join([lines[0].split(" (Lance error", 1)[0], *hints[:1]])


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _identifier(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
