"""What must hold between the tables, each as a question with an answer and examples.

Every question reads only key columns, and each snapshot's once however many questions are about it. They are asked
by Dagster's asset checks after each run, and by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from pkm_pipelines.model.tables import EXTRACTED_CONCEPTS, KNOWLEDGE_GRAPH, NOTE_METRICS, PROCESSED_NOTES, RAW_NOTES
from pkm_pipelines.operations.coverage import lacking_in_silver, why_not_embedded
from pkm_pipelines.operations.stores import Stores

if TYPE_CHECKING:
    import polars as pl

_EXAMPLES = 20
NOTE_EMBEDDINGS = "vectors.note_embeddings"
# How many times its limit a debt may be before a check fails: at the limit itself maintenance only begins.
DEBT_FACTOR = 2.0


@dataclass(frozen=True)
class Finding:
    """The answer to a check: how many rows are against it, and some of them (or of what is to be told besides)."""

    passed: bool
    message: str
    count: int = 0
    examples: tuple[str, ...] = ()


def _finding(wrong: Iterable[str], what: str, right: str) -> Finding:
    found = sorted(wrong)
    if not found:
        return Finding(True, right)
    return Finding(False, f"{len(found)} {what}", len(found), tuple(found[:_EXAMPLES]))


# What the questions are about. One snapshot of each table is held: some 100 bytes a row.
_COLUMNS = {
    RAW_NOTES.name: ["change_id", "note_id"],
    PROCESSED_NOTES.name: ["note_id", "source", "path", "deleted_at"],
    EXTRACTED_CONCEPTS.name: ["note_id", "concept"],
    KNOWLEDGE_GRAPH.name: ["edge_id", "src", "dst"],
    NOTE_METRICS.name: ["note_id"],
}
_CHUNK_COLUMNS = ["chunk_id", "note_id", "model"]
_FRAMES: WeakKeyDictionary[Stores, dict[str, tuple[int | None, pl.DataFrame]]] = WeakKeyDictionary()


def _frame(stores: Stores, table: str, columns: list[str]) -> pl.DataFrame:
    import polars as pl
    import pyarrow as pa

    snapshot = stores.iceberg.snapshot_id(table)
    held = _FRAMES.setdefault(stores, {})
    if table not in held or held[table][0] != snapshot:
        reader = stores.tables.read(table, columns=_COLUMNS[table], snapshot_id=snapshot)
        held[table] = snapshot, pl.DataFrame(pa.Table.from_batches(reader, schema=reader.schema))
    return held[table][1].select(columns)


def _repeated(stores: Stores, table: str, columns: list[str], what: str) -> Finding:
    import polars as pl

    frame = _frame(stores, table, columns)
    repeated = frame.filter(pl.struct(columns).is_duplicated()).unique()
    return _finding(
        (" / ".join(map(str, row)) for row in repeated.rows()),
        f"{what} stand more than once",
        f"every {what} is unique",
    )


def change_ids_unique(stores: Stores) -> Finding:
    """No change was appended twice."""
    return _repeated(stores, RAW_NOTES.name, ["change_id"], "change id")


def note_ids_unique(stores: Stores) -> Finding:
    """Each note has one state."""
    return _repeated(stores, PROCESSED_NOTES.name, ["note_id"], "note id")


def concepts_unique(stores: Stores) -> Finding:
    """Each concept stands once in a note."""
    return _repeated(stores, EXTRACTED_CONCEPTS.name, ["note_id", "concept"], "concept of a note")


def edge_ids_unique(stores: Stores) -> Finding:
    """Each edge stands once."""
    return _repeated(stores, KNOWLEDGE_GRAPH.name, ["edge_id"], "edge id")


def _alive(stores: Stores) -> pl.DataFrame:
    import polars as pl

    return _frame(stores, PROCESSED_NOTES.name, ["note_id", "source", "path", "deleted_at"]).filter(
        pl.col("deleted_at").is_null()
    )


def bronze_and_silver_agree(stores: Stores) -> Finding:
    """Silver has a row for exactly the notes that bronze has changes of."""
    bronze = set(_frame(stores, RAW_NOTES.name, ["note_id"])["note_id"])
    silver = set(_frame(stores, PROCESSED_NOTES.name, ["note_id"])["note_id"])
    lost = {f"{note}: in bronze, not in silver" for note in bronze - silver}
    return _finding(lost, "notes of bronze are missing in silver", f"silver has a row for each of {len(bronze)} notes")


def every_current_note_present(stores: Stores) -> Finding:
    """Every note that the sources have now is alive in silver; the examples say of those that are not why.

    A file that cannot be read as a note is none that is missing, and is told of as well.
    """
    read = {source.name for source in stores.settings.sources}
    present = {(source, path) for source, path in _alive(stores).select("source", "path").rows() if source in read}
    lacks = list(lacking_in_silver(stores, present, set(_frame(stores, RAW_NOTES.name, ["note_id"])["note_id"])))
    odd = [str(lack) for lack in lacks if lack.odd]
    besides = f"; {len(odd)} files are left out for what is odd about them" if odd else ""
    finding = _finding(
        (str(lack) for lack in lacks if not lack.odd),
        f"current notes are missing in silver{besides}",
        f"all {len(present)} current notes are in silver{besides}",
    )
    return replace(finding, examples=(*finding.examples, *odd)[:_EXAMPLES])


def no_orphan_edge(stores: Stores) -> Finding:
    """Each edge starts from a note that is alive, and ends in one if it ends in a note."""
    import polars as pl

    alive = _alive(stores)["note_id"]
    edges = _frame(stores, KNOWLEDGE_GRAPH.name, ["edge_id", "src", "dst"])
    orphans = edges.filter(
        ~pl.col("src").is_in(alive.implode()) | (pl.col("dst").is_not_null() & ~pl.col("dst").is_in(alive.implode()))
    )
    return _finding(orphans["edge_id"], "edges start or end in no note", f"all {edges.height} edges have their notes")


def metrics_cover_notes(stores: Stores) -> Finding:
    """Every note that is alive has metrics, and no other."""
    alive = set(_alive(stores)["note_id"])
    measured = set(_frame(stores, NOTE_METRICS.name, ["note_id"])["note_id"])
    return _finding(
        alive ^ measured, "notes differ between silver and the metrics", f"all {len(alive)} notes are measured"
    )


def _chunks(stores: Stores, columns: list[str]) -> pl.DataFrame | None:
    import polars as pl
    import pyarrow as pa

    table = stores.vector_table
    if table is None or not stores.vectors.exists(table):
        return None
    version = stores.vectors.version(table)
    held = _FRAMES.setdefault(stores, {})
    if table not in held or held[table][0] != version:
        batches = list(stores.vectors.read(table, columns=_CHUNK_COLUMNS, version=version))
        if not batches:
            return None
        held[table] = version, pl.DataFrame(pa.Table.from_batches(batches))
    return held[table][1].select(columns)


def chunk_ids_unique(stores: Stores) -> Finding:
    """Each chunk stands once."""
    frame = _chunks(stores, ["chunk_id"])
    repeated = () if frame is None else frame.filter(frame.is_duplicated())["chunk_id"].unique()
    return _finding(repeated, "chunk ids stand more than once", "every chunk id is unique")


def every_note_embedded(stores: Stores) -> Finding:
    """Every note that is alive has at least one chunk; the examples say of those that have none why."""
    table = stores.vector_table
    if table is None:
        return Finding(True, "no embedder is set")
    frame = _chunks(stores, ["note_id"])
    embedded = set() if frame is None else set(frame["note_id"])
    alive = _alive(stores)
    missing = [f"{source}: {path}" for note, source, path, _ in alive.rows() if note not in embedded]
    why = why_not_embedded(stores, table) if missing else ""
    missing = [f"{note}: {why}" for note in missing]
    return _finding(missing, "notes have no chunk", f"all {alive.height} notes are embedded")


def dimension_and_model_agree(stores: Stores) -> Finding:
    """Every vector is of the settings' model and of its dimension."""
    embedder = stores.embedder
    frame = _chunks(stores, ["chunk_id", "model"])
    if embedder is None or frame is None:
        return Finding(True, "there are no vectors")
    table = stores.vector_table
    assert table is not None
    dimension = stores.vectors.schema(table).field("embedding").type.list_size
    if dimension != embedder.dimension:
        return Finding(
            False, f"the table holds {dimension} numbers a vector, the model gives {embedder.dimension}", frame.height
        )
    strange = frame.filter(frame["model"] != embedder.name)
    return _finding(
        strange["chunk_id"], f"chunks are not of {embedder.name}", f"all {frame.height} vectors are of {embedder.name}"
    )


def within_debt(table: str) -> Callable[[Stores], Finding]:
    """The check that a table has not piled up far more than maintenance should have worked off."""

    def debt_within_limits(stores: Stores) -> Finding:
        """No debt is more than twice its limit: maintenance keeps up."""
        from pkm_pipelines.operations.debt import debt_of, over_limit

        name = stores.vector_table if table == NOTE_EMBEDDINGS else table
        if name is None or (table == NOTE_EMBEDDINGS and not stores.vectors.exists(name)):
            return Finding(True, "there are no vectors")
        passed = [str(limit) for limit in over_limit(stores, debt_of(stores, name), DEBT_FACTOR)]
        return _finding(passed, "debts are far over their limits", "maintenance keeps up")

    return debt_within_limits
