"""SQL over real Iceberg and Lance tables: what it answers, and above all what it refuses."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from pkm_pipelines.model.errors import QueryError
from pkm_pipelines.query.sql import TABLE_FUNCTIONS, query_tables
from pkm_pipelines.storage.location import Location

pytest_plugins = ["tests.support.s3"]

WHEN = dt.datetime(2026, 3, 1, 12, 30, tzinfo=dt.UTC)
NOTES = pa.table(
    {
        "note_id": ["a", "b", "c"],
        "path": ["Ä/one.md", "two.md", "three.md"],
        "words": pa.array([10, 20, 30], pa.int64()),
        "changed_at": pa.array([WHEN] * 3, pa.timestamp("us", tz="UTC")),
    }
)
CHUNKS = pa.table(
    {
        "chunk_id": ["x", "y"],
        "note_id": ["a", "b"],
        "embedding": pa.array([[1.0, 0], [0, 1]], pa.list_(pa.float32(), 2)),
    }
)


def make_tables(location: Location) -> tuple[SqlCatalog, dict[str, str]]:
    """Two Iceberg tables and a Lance dataset below `location`."""
    import lance

    warehouse = location.child("warehouse")
    options = {} if location.is_local else location.s3().pyiceberg()
    uri = f"sqlite:///{location.path}/catalog.db" if location.is_local else "sqlite:///:memory:"
    catalog = SqlCatalog("test", uri=uri, warehouse=warehouse.url, **options)
    urls: dict[str, str] = {}
    for name, rows in (("bronze.raw_notes", NOTES), ("gold.note_metrics", NOTES.select(["note_id", "words"]))):
        catalog.create_namespace_if_not_exists(name.split(".")[0])
        table = catalog.create_table(name, rows.schema)
        table.append(rows)
        urls[name] = table.metadata_location
    vectors = location.child("vectors").child("note_embeddings.lance")
    if location.is_local:
        vectors.path.parent.mkdir(parents=True)
        lance.write_dataset(CHUNKS, str(vectors.path), data_storage_version="2.2")
    else:
        lance.write_dataset(
            CHUNKS, vectors.url, data_storage_version="2.2", storage_options=location.s3().object_store()
        )
    urls["vectors.note_embeddings"] = vectors.url
    return catalog, urls


@pytest.fixture(scope="module")
def folder(ram_folder: Path) -> Path:
    # Blanks, '%' and letters beyond ASCII stand encoded in URLs and plain in paths: both must be found.
    folder = ram_folder / "Mein Gedächtnis 100%"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, str]:
    return make_tables(Location(folder.as_uri()))[1]


Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def ask(tables: dict[str, str]) -> Ask:
    return lambda query, **options: query_tables(query, tables, **options).to_pylist()


def test_joins_iceberg_and_lance(ask: Ask) -> None:
    query = """
        SELECT n.path, m.words, count(*) AS chunks
        FROM bronze.raw_notes n JOIN gold.note_metrics m USING (note_id) JOIN vectors.note_embeddings USING (note_id)
        GROUP BY ALL ORDER BY ALL
    """
    assert ask(query) == [
        {"path": "two.md", "words": 20, "chunks": 1},
        {"path": "Ä/one.md", "words": 10, "chunks": 1},
    ]


def test_s3_answers_as_a_folder_does(s3_endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, urls = make_tables(s3_endpoint.location())
    query = "SELECT path, embedding[1] AS x FROM raw_notes JOIN note_embeddings USING (note_id) ORDER BY ALL"
    assert query_tables(query, urls).to_pylist() == [{"path": "two.md", "x": 0.0}, {"path": "Ä/one.md", "x": 1.0}]
    # Wrong credentials are an error of one line that does not hold them.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'it\'s "quoted" and secret')
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(QueryError) as error:
        query_tables("FROM raw_notes", urls)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("WITH x AS (SELECT words FROM raw_notes) SELECT max(words) AS most FROM x", [{"most": 30}]),
        ("FROM bronze.raw_notes SELECT path WHERE words = 20", [{"path": "two.md"}]),
        ("from RAW_NOTES select PATH where note_id = 'b' -- a comment", [{"path": "two.md"}]),
        ("VALUES (1)", [{"col0": 1}]),
        ("SELECT sum(i)::BIGINT AS s FROM range(4) t(i)", [{"s": 6}]),
        ("SELECT unnest([1, 2]) AS i", [{"i": 1}, {"i": 2}]),
        ("WITH raw_notes AS (SELECT 7 AS k) FROM raw_notes", [{"k": 7}]),
        ("PIVOT gold.note_metrics ON note_id IN ('a', 'b') USING sum(words)::BIGINT", [{"a": 10, "b": 20}]),
        ("SELECT EXISTS (FROM gold.note_metrics WHERE words > 25) AS found", [{"found": True}]),
        (
            "SELECT table_schema AS s, table_name AS t FROM information_schema.tables ORDER BY ALL",
            [
                {"s": "bronze", "t": "raw_notes"},
                {"s": "gold", "t": "note_metrics"},
                {"s": "vectors", "t": "note_embeddings"},
            ],
        ),
    ],
)
def test_reads(ask: Ask, query: str, rows: list[dict[str, Any]]) -> None:
    assert ask(query) == rows


def test_describes_and_explains(ask: Ask) -> None:
    assert [row["column_name"] for row in ask("DESCRIBE bronze.raw_notes")] == NOTES.column_names
    assert [row["column_name"] for row in ask("SUMMARIZE SELECT words FROM raw_notes")] == ["words"]
    assert {f"{row['schema']}.{row['name']}" for row in ask("show tables;")} == {
        "bronze.raw_notes",
        "gold.note_metrics",
        "vectors.note_embeddings",
    }
    listed = [
        {"schema": "bronze", "name": "raw_notes", "columns": 4},
        {"schema": "gold", "name": "note_metrics", "columns": 2},
        {"schema": "vectors", "name": "note_embeddings", "columns": 3},
    ]
    for query in ("SHOW TABLES", "show tables; -- which are there?"):
        assert ask(query) == listed
    assert ask("SHOW ALL TABLES")[1]["column_names"] == ["note_id", "words"]
    for prefix in ("EXPLAIN", "/* ü */ explain /*(*/ analyze", "EXPLAIN (FORMAT JSON)"):
        assert "ICEBERG_SCAN" in str(ask(f"{prefix} SELECT 'ß', words FROM raw_notes"))


def test_times_are_utc_whatever_the_machine_says(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    assert ask("SELECT changed_at, hour(changed_at) AS h FROM raw_notes LIMIT 1") == [{"changed_at": WHEN, "h": 12}]


def test_limit_holds_and_does_not_compute_the_rest(tables: dict[str, str]) -> None:
    assert query_tables("FROM raw_notes ORDER BY words DESC", tables, limit=2)["words"].to_pylist() == [30, 20]
    assert query_tables("FROM raw_notes WHERE false", tables, limit=2).schema.names == NOTES.column_names
    # 10^15 rows would not come to an end.
    assert query_tables("SELECT i FROM range(1000000000000000) t(i)", tables, limit=3).num_rows == 3


def test_only_the_tables_that_a_query_names_are_looked_up(tables: dict[str, str]) -> None:
    class Watched(Mapping[str, str]):
        seen: list[str]

        def __init__(self) -> None:
            self.seen = []

        def __getitem__(self, name: str) -> str:
            self.seen.append(name)
            return tables[name]

        def __contains__(self, name: object) -> bool:
            return name in tables

        def __iter__(self) -> Iterator[str]:
            return iter(tables)

        def __len__(self) -> int:
            return len(tables)

    watched = Watched()
    query_tables("FROM gold.note_metrics a JOIN note_metrics b USING (note_id)", watched)
    assert watched.seen == ["gold.note_metrics"]


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO bronze.raw_notes VALUES ('x')",
        "DELETE FROM bronze.raw_notes",
        "UPDATE bronze.raw_notes SET path = ''",
        "DROP TABLE bronze.raw_notes",
        "CREATE TABLE t AS SELECT 1",
        "COPY (SELECT 1) TO '{folder}/out.csv'",
        "EXPLAIN COPY (SELECT 1) TO '{folder}/out.csv'",
        "EXPLAIN ANALYZE CREATE TABLE t (a INT)",
        "EXPORT DATABASE '{folder}/out'",
        "ATTACH '{folder}/other.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "BEGIN",
        "CHECKPOINT",
        "VACUUM",
        "CREATE SECRET (TYPE s3)",
        "DROP SECRET lake",
        "USE bronze",
    ],
)
def test_statements_that_do_anything_but_read_are_refused(ask: Ask, folder: Path, query: str) -> None:
    with pytest.raises(QueryError, match="only statements that read"):
        ask(query.replace("{folder}", str(folder)))
    assert not list(folder.glob("o*"))


SECRET = "root-of-all-secrets"
READERS = [
    "read_csv('{file}')",
    "read_text('{file}')",
    "read_blob('{file}')",
    "read_json('{file}')",
    "read_parquet('{file}')",
    "sniff_csv('{file}')",
    "glob('{file}')",
    "parquet_metadata('{file}')",
    "'{file}'",
    '"{file}"',
    "'{folder}/other.lance'",
    "'file://{folder}/other.lance'",
    "__lance_scan('{folder}/other.lance')",
    "lance_vector_search('{folder}/other.lance', 'embedding', [1.0, 0.0]::FLOAT[2])",
    "lance_fts('{folder}/other.lance', 'note_id', 'a')",
    "__lance_truncate_table('{folder}/vectors/note_embeddings.lance')",
    "iceberg_scan('{folder}/other')",
    "iceberg_metadata('{metadata}')",
    "query('SELECT 1')",
    "query_table('bronze.raw_notes')",
    "duckdb_secrets()",
    "duckdb_settings()",
    "which_secret('s3://b', 's3')",
    "pg_catalog.pg_class",
    "memory.bronze.raw_notes",
    "system.information_schema.tables",
]
PLACES = [
    "SELECT * FROM {reader}",
    "FROM vectors.note_embeddings, (SELECT * FROM {reader})",
    "WITH x AS (SELECT * FROM {reader}) SELECT * FROM x",
    "SELECT (SELECT count(*) FROM {reader})",
    "SELECT 1 WHERE EXISTS (FROM {reader})",
    "DESCRIBE SELECT * FROM {reader}",
    "SUMMARIZE SELECT * FROM {reader}",
    "EXPLAIN ANALYZE SELECT * FROM {reader}",
    "FROM raw_notes UNION ALL BY NAME FROM {reader}",
    "PIVOT {reader} ON a IN (1) USING count(*)",
    # A WITH that defines the file's name somewhere else must not make it look harmless.
    'SELECT * FROM {reader} UNION ALL (WITH "{folder}/other.lance" AS (SELECT 1), "{file}" AS (SELECT 1) SELECT 1)',
]


@pytest.mark.parametrize("place", PLACES)
def test_nothing_outside_the_tables_can_be_read(tables: dict[str, str], folder: Path, place: str) -> None:
    import lance

    file, other = folder / "passwd", folder / "other.lance"
    file.write_text(f"a,b\n{SECRET},1\n")
    if not other.exists():
        lance.write_dataset(CHUNKS.append_column("secret", [[SECRET] * 2]), str(other), data_storage_version="2.2")
    for reader in READERS:
        query = place.replace("{reader}", reader)
        for word, value in (("{file}", file), ("{folder}", folder), ("{metadata}", tables["bronze.raw_notes"])):
            query = query.replace(word, str(value))
        with pytest.raises(QueryError) as error:
            query_tables(query, tables)
        assert SECRET not in str(error.value), query


def test_duckdb_itself_is_shut_where_the_first_check_would_fail(
    tables: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every table function let through, DuckDB still opens nothing but the files of the named tables."""
    import pkm_pipelines.query.sql as module

    monkeypatch.setattr(module, "TABLE_FUNCTIONS", TABLE_FUNCTIONS | {"read_text", "read_csv", "glob"})
    (folder / "passwd").write_text(SECRET)
    inside = Location(tables["bronze.raw_notes"]).path.parent
    for path in ("/etc/passwd", folder / "passwd", f"{inside}/../../../../passwd", "http://127.0.0.1/x", "s3://b/x"):
        with pytest.raises(QueryError, match=r"Permission Error|file system operations are disabled"):
            query_tables(f"SELECT n.* FROM raw_notes, read_text('{path}') n", tables)


def test_the_neighbour_of_a_named_table_is_shut_too(tables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import pkm_pipelines.query.sql as module

    monkeypatch.setattr(module, "TABLE_FUNCTIONS", TABLE_FUNCTIONS | {"read_blob"})
    other = Location(tables["gold.note_metrics"]).path
    with pytest.raises(QueryError, match="Permission Error"):
        query_tables(f"SELECT n.size FROM raw_notes, read_blob('{other}') n", tables)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "the query is empty"),
        ("  -- nothing", "the query is empty"),
        ("SELECT 1; SELECT 2", "several statements"),
        ("SELEC 1", 'Parser Error: syntax error at or near "SELEC"'),
        (
            "FROM nope",
            "there is no table nope; there are: bronze.raw_notes, gold.note_metrics, vectors.note_embeddings",
        ),
        ("FROM silver.raw_notes", "there is no table silver.raw_notes; there are: bronze.raw_notes"),
        (
            "SELECT wrods FROM raw_notes",
            'Referenced column "wrods" not found in FROM clause! Candidate bindings: "words"',
        ),
        ("PIVOT gold.note_metrics ON note_id USING sum(words)", "a PIVOT must name its values"),
        ("FROM bronze.raw_notes AT (VERSION => 1)", "does not support time travel"),
        ("SELECT 1 FROM read_csv('x')", "the table function read_csv is not allowed"),
    ],
)
def test_errors_are_one_line_that_helps(ask: Ask, query: str, message: str) -> None:
    with pytest.raises(QueryError) as error:
        ask(query)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_tables_of_a_lakehouse_also_empty_ones(work: Path) -> None:
    from pkm_pipelines.model.tables import BY_NAME
    from pkm_pipelines.operations.stores import Stores
    from pkm_pipelines.query.sql import VECTORS, StoredTables, sql
    from pkm_pipelines.settings import Settings

    stores = Stores(Settings(home=work, embedder={"model": "hashing"}))
    assert list(StoredTables(stores)) == []
    for spec in BY_NAME.values():
        stores.iceberg.ensure(spec)
    tables = StoredTables(stores)
    assert list(tables) == sorted(BY_NAME) and len(tables) == len(BY_NAME)
    assert "silver.processed_notes" in tables and VECTORS not in tables and "processed_notes" not in tables
    with pytest.raises(KeyError):
        tables["silver.nope"]
    assert sql(stores, "FROM processed_notes").num_rows == 0
    assert sql(stores, "SHOW TABLES").num_rows == len(BY_NAME)
    with pytest.raises(QueryError, match=r"there is no table vectors\.note_embeddings"):
        sql(stores, f"FROM {VECTORS}")


def test_vectors_go_by_the_short_name_and_by_that_of_their_table(work: Path) -> None:
    import lance

    from pkm_pipelines.operations.stores import Stores
    from pkm_pipelines.query.sql import VECTORS, StoredTables, sql
    from pkm_pipelines.settings import EmbedderSettings, Settings

    stores = Stores(Settings(home=work, embedder=EmbedderSettings(model="hashing")))
    table = stores.vector_table
    assert table is not None and table != VECTORS
    place = stores.vectors.location(table).path
    place.parent.mkdir(parents=True, exist_ok=True)
    lance.write_dataset(CHUNKS, str(place), data_storage_version="2.2")
    assert list(StoredTables(stores)) == [VECTORS]
    joined = f"FROM {table} a JOIN {VECTORS} b USING (chunk_id) SELECT chunk_id ORDER BY ALL"
    assert sql(stores, joined)["chunk_id"].to_pylist() == ["x", "y"]
    assert sql(stores, f"FROM {table}").num_rows == 2
    with pytest.raises(QueryError, match="note_embeddings__of_another_model; there are: vectors"):
        sql(stores, f"FROM {VECTORS}__of_another_model")


def test_an_empty_lakehouse_says_what_to_do() -> None:
    with pytest.raises(QueryError, match="the lakehouse is empty; fill it with `pkm run`"):
        query_tables("FROM bronze.raw_notes", {})
    assert query_tables("SELECT 1 AS one", {}).to_pylist() == [{"one": 1}]


def test_a_deep_query_is_no_crash(ask: Ask) -> None:
    depth = 300
    assert ask("SELECT " + "(" * depth + "1" + ")" * depth + " AS one") == [{"one": 1}]


def test_answers_while_a_writer_commits(work: Path, budget: int) -> None:
    catalog, urls = make_tables(Location(work.as_uri()))
    stop = threading.Event()

    class Live(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            return catalog.load_table(name).metadata_location

    def write() -> None:
        while not stop.is_set():
            catalog.load_table("bronze.raw_notes").append(NOTES)

    writer = threading.Thread(target=write)
    writer.start()
    counts: list[int] = []
    try:
        for _ in range(5 * budget):
            rows = query_tables("SELECT count(*) AS n, sum(words)::BIGINT AS w FROM raw_notes", Live(urls)).to_pylist()
            # Whole commits only: 3 rows and 60 words each.
            assert rows[0]["n"] % 3 == 0 and rows[0]["w"] == rows[0]["n"] * 20
            counts.append(rows[0]["n"])
    finally:
        stop.set()
        writer.join()
    assert counts == sorted(counts) and counts[-1] > counts[0]
