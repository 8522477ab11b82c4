"""Figures about notes: what can be counted in one, how it hangs together with the others, and how finished it looks.

`local_metrics` needs one note alone, `graph_metrics` the edges of all, and `note_metrics` joins the two without looking
at a text again: a changed note is counted once, and a moved link is a join of numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pkm_pipelines.knowledge.readability import reading_ease
from pkm_pipelines.model.tables import NOTE_METRICS

if TYPE_CHECKING:
    import polars as pl

PAGERANK_DAMPING = 0.85
"""The share of readers who follow a link (S. Brin and L. Page, 1998)."""

PAGERANK_PRECISION = 1e-10
"""Power iteration stops when the ranks of all notes together move by less, per note."""

PAGERANK_TOLERANCE = 0.005
"""A stored PageRank is replaced only if it moved by more than this (the mean is 1).

Every link moves the rank of every note by a little. Writing what no reader can tell apart would rewrite the whole
table at each edit. The error never grows past the tolerance, since the comparison is with the stored value.
"""

LOCAL_COLUMNS = (
    "note_id", "source", "path", "title", "word_count", "character_count", "reading_seconds", "heading_count",
    "tag_count", "task_count", "open_task_count", "readability", "created_at", "changed_at",
)  # fmt: skip
"""The columns of NOTE_METRICS that depend on the note alone."""

_DEGREES = ("out_degree", "in_degree", "broken_links", "external_links")
_LINKS = ("link", "embed")

# Quality is a weighted sum of four parts, each 0 to 1 and made of columns of NOTE_METRICS, so that it can be told
# again when only the graph has changed.
_CONNECTIONS, _STRUCTURE, _LENGTH, _METADATA = 0.35, 0.25, 0.2, 0.2
_ENOUGH_LINKS = 3
_WORDS_PER_HEADING = 300
_ENOUGH_WORDS = 100


def local_metrics(notes: pa.RecordBatch | pa.Table) -> pa.Table:
    """What is counted in each note alone: `LOCAL_COLUMNS`, one row a note, in the order of `notes`.

    Takes the columns note_id, source, path, title, word_count, character_count, reading_seconds, headings, tags, tasks,
    text, language, created_at and changed_at of PROCESSED_NOTES.
    """
    import polars as pl

    frame = _frame(notes, _NOTE_COLUMNS)
    status = pl.col("tasks").list.eval(pl.element().struct.field("status"))
    counted = frame.select(
        "note_id", "source", "path", "title", "word_count", "character_count", "reading_seconds",
        heading_count=pl.col("headings").list.len(),
        tag_count=pl.col("tags").list.len(),
        task_count=pl.col("tasks").list.len(),
        open_task_count=status.list.count_matches(" "),
        readability=reading_ease(frame["text"], frame["language"]),
        created_at="created_at",
        changed_at="changed_at",
    ).with_columns(pl.col("heading_count", "tag_count", "task_count", "open_task_count").fill_null(0))  # fmt: skip
    return _arrow(counted, LOCAL_COLUMNS)


_NOTE_COLUMNS = (
    "note_id", "source", "path", "title", "word_count", "character_count", "reading_seconds", "headings", "tags",
    "tasks", "text", "language", "created_at", "changed_at",
)  # fmt: skip


def degrees(edges: pa.RecordBatch | pa.Table, note_ids: pa.Array) -> pa.Table:
    """How each note is linked: note_id, out_degree, in_degree, broken_links, external_links, in the order of note_ids.

    Takes the columns src, kind, status and dst of KNOWLEDGE_GRAPH. A degree counts other notes, each once: two links
    to one note count once and a link to the note itself does not. Broken and external links are counted as written.
    """
    import polars as pl

    links = _frame(edges, ("src", "kind", "status", "dst")).filter(pl.col("kind").is_in(_LINKS))
    pairs = (
        links.filter((pl.col("status") == "resolved") & pl.col("dst").is_not_null() & (pl.col("src") != pl.col("dst")))
        .select("src", "dst")
        .unique()
    )
    counted = pl.DataFrame({"note_id": pl.from_arrow(note_ids)}, schema={"note_id": pl.String})
    for name, keys in (
        ("out_degree", pairs["src"]),
        ("in_degree", pairs["dst"]),
        ("broken_links", links.filter(pl.col("status") == "broken")["src"]),
        ("external_links", links.filter(pl.col("status") == "external")["src"]),
    ):
        counts = keys.rename("note_id").to_frame().group_by("note_id").len(name)
        counted = counted.join(counts, on="note_id", how="left", maintain_order="left")
    return _arrow(counted.with_columns(pl.col(_DEGREES).fill_null(0)), ("note_id", *_DEGREES))


def pagerank(edges: pa.RecordBatch | pa.Table, note_ids: pa.Array) -> pa.Table:
    """PageRank of each note over `edges` (columns src and dst): note_id and pagerank, sorted by note_id.

    The mean over all notes is 1. Edges that are parallel count once, edges of a note to itself or of notes that are not
    in `note_ids` do not count. Notes and edges may come in any order: the numbers are the same to the last bit.
    """
    import rustworkx as rx

    notes = pc.unique(note_ids.cast(pa.string()))
    notes = notes.take(pc.sort_indices(notes))
    if len(notes) == 0:
        return pa.table({"note_id": notes, "pagerank": pa.array([], pa.float64())})
    src, dst = (pc.index_in(_flat(edges.column(name)), notes) for name in ("src", "dst"))
    kept = pc.and_kleene(pc.and_(pc.is_valid(src), pc.is_valid(dst)), pc.not_equal(src, dst)).fill_null(False)
    pairs = sorted(set(zip(src.filter(kept).to_pylist(), dst.filter(kept).to_pylist(), strict=True)))
    graph: rx.PyDiGraph[None, None] = rx.PyDiGraph(multigraph=False, node_count_hint=len(notes))
    graph.add_nodes_from([None] * len(notes))
    graph.add_edges_from_no_data(pairs)
    ranks = rx.pagerank(graph, alpha=PAGERANK_DAMPING, tol=PAGERANK_PRECISION, max_iter=1000)
    scaled = [ranks[node] * len(notes) for node in range(len(notes))]
    return pa.table({"note_id": notes, "pagerank": pa.array(scaled, pa.float64())})


def graph_metrics(edges: pa.RecordBatch | pa.Table, note_ids: pa.Array) -> pa.Table:
    """Degrees and PageRank of every note, sorted by note_id; takes src, kind, status and dst of KNOWLEDGE_GRAPH."""
    table = pa.table(edges) if isinstance(edges, pa.RecordBatch) else edges
    linked = pc.and_(
        pc.is_in(table["kind"], pa.array(_LINKS)),
        pc.and_(pc.equal(table["status"], "resolved"), pc.is_valid(table["dst"])),
    )
    ranks = pagerank(table.filter(linked).select(["src", "dst"]), note_ids)
    return degrees(table, _flat(ranks["note_id"])).append_column("pagerank", ranks["pagerank"])


def settle_pagerank(fresh: pa.Table, stored: pa.Table) -> pa.Table:
    """`fresh` with the stored pagerank where that is within `PAGERANK_TOLERANCE` (both: note_id, pagerank, …)."""
    import polars as pl

    before = _frame(stored, ("note_id", "pagerank")).rename({"pagerank": "before"})
    new = _frame(fresh, fresh.column_names).join(before, on="note_id", how="left", maintain_order="left")
    moved = (pl.col("pagerank") - pl.col("before")).abs() > PAGERANK_TOLERANCE
    settled = new.with_columns(
        pagerank=pl.when(moved | pl.col("before").is_null()).then(pl.col("pagerank")).otherwise(pl.col("before"))
    )
    return _arrow(settled, fresh.column_names)


def concept_counts(concepts: pa.RecordBatch | pa.Table) -> pa.Table:
    """How many concepts each note has: note_id and concept_count; takes EXTRACTED_CONCEPTS column note_id."""
    counts = _frame(concepts, ("note_id",)).group_by("note_id", maintain_order=True).len("concept_count")
    return _arrow(counts, ("note_id", "concept_count"))


def note_metrics(local: pa.Table, graph: pa.Table, concepts: pa.Table) -> pa.RecordBatch:
    """Rows of NOTE_METRICS for the notes in `local`, in its order.

    `local` has `LOCAL_COLUMNS`, from `local_metrics` or from the table as it stands; `graph` is what `graph_metrics`
    gives and `concepts` what `concept_counts` gives. A note that one of them does not know has no links or concepts.
    """
    import polars as pl

    frame = _frame(local, LOCAL_COLUMNS)
    frame = frame.join(
        _frame(graph, ("note_id", *_DEGREES, "pagerank")), on="note_id", how="left", maintain_order="left"
    )
    frame = frame.join(_frame(concepts, ("note_id", "concept_count")), on="note_id", how="left", maintain_order="left")
    frame = frame.with_columns(pl.col(*_DEGREES, "concept_count").fill_null(0)).with_columns(quality=_quality())
    table = _arrow(frame, NOTE_METRICS.arrow.names).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=NOTE_METRICS.arrow)


def _quality() -> pl.Expr:
    """How finished a note looks, 0 to 1.

    - connections (0.35): links out and links in, three of each are enough, less the share of broken links;
    - structure (0.25): a heading for each 300 words past the first 300;
    - length (0.2): 100 words are enough;
    - metadata (0.2): has tags, states its creation date.
    """
    import polars as pl

    out, broken = pl.col("out_degree"), pl.col("broken_links")
    linked = ((out / _ENOUGH_LINKS).clip(0, 1) + (pl.col("in_degree") / _ENOUGH_LINKS).clip(0, 1)) / 2
    connections = linked * (1 - broken / pl.max_horizontal(out + broken, 1))
    words = pl.col("word_count").fill_null(0)
    wanted = words // _WORDS_PER_HEADING
    structure = pl.when(wanted == 0).then(1.0).otherwise((pl.col("heading_count") / wanted).clip(0, 1))
    length = (words / _ENOUGH_WORDS).clip(0, 1)
    metadata = (pl.col("tag_count") > 0) * 0.6 + pl.col("created_at").is_not_null() * 0.4
    total = _CONNECTIONS * connections + _STRUCTURE * structure + _LENGTH * length + _METADATA * metadata
    # An empty note has no structure to speak of.
    return pl.when(words == 0).then(0.0).otherwise(total).round(4)


def _frame(data: pa.RecordBatch | pa.Table, columns: tuple[str, ...] | list[str]) -> pl.DataFrame:
    import polars as pl

    table = pa.table(data) if isinstance(data, pa.RecordBatch) else data
    frame = pl.from_arrow(table.select(list(columns)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _arrow(frame: pl.DataFrame, columns: tuple[str, ...] | list[str]) -> pa.Table:
    """The columns in the types that NOTE_METRICS gives them."""
    fields = [pa.field(name, NOTE_METRICS.column(name).type) for name in columns]
    if list(columns) == NOTE_METRICS.arrow.names:
        fields = list(NOTE_METRICS.arrow)
    return frame.select(columns).to_arrow().cast(pa.schema(fields))


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.cast(pa.string())
