"""Edges of the knowledge graph: what their columns hold, and that they change only where a name does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pkm_pipelines.knowledge.graph import edges
from pkm_pipelines.knowledge.links import VaultIndex, names_of, target_key
from pkm_pipelines.knowledge.markdown import parse_notes
from pkm_pipelines.knowledge.mentions import MentionFinder, note_names
from pkm_pipelines.model import ids
from pkm_pipelines.model.tables import KNOWLEDGE_GRAPH, RAW_NOTES
from tests.conftest import BUDGETS, budget_name

EXAMPLES = 60 * BUDGETS[budget_name()]
NOW = dt.datetime(2024, 5, 31, tzinfo=dt.UTC)


def parse_vault(notes: Mapping[str, str]) -> pa.RecordBatch:
    """Notes of a vault (path → content) as rows of silver; the id of a note is `id of <path>`."""
    rows = [
        {
            "change_id": path,
            "lsn": 1,
            "change_type": "INSERT",
            "source": "vault",
            "note_id": f"id of {path}",
            "path": path,
            "content": content,
            "ordinal": 0,
            "changed_at": NOW,
            "ingested_at": NOW,
            "partition_date": NOW.date(),
        }
        for path, content in notes.items()
    ]
    return parse_notes(pa.RecordBatch.from_pylist(rows, schema=RAW_NOTES.arrow), {}, detect=lambda _: None)


def make_edges(notes: Mapping[str, str], files: Iterable[str] = (), **arguments: Any) -> list[dict[str, Any]]:
    index = VaultIndex([*notes, *files], **arguments)
    batch = edges(parse_vault(notes), index, {path: f"id of {path}" for path in notes})
    assert batch.schema == KNOWLEDGE_GRAPH.arrow
    batch.validate(full=True)
    rows = batch.to_pylist()
    assert len({row["edge_id"] for row in rows}) == len(rows)
    return rows


def pick(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def test_links_and_embeds() -> None:
    notes = {
        "a.md": '---\nup: "[[b]]"\n---\n[[b#h|B]] ![[pic.png]] [[gone]] [u](https://x.org) [[#own]] [e](sub/c.md) '
        "[[b#h]]",
        "b.md": "",
        "sub/c.md": "",
    }
    rows = make_edges(notes, ["img/pic.png"])
    columns = (
        "kind",
        "raw_target",
        "ordinal",
        "target_key",
        "status",
        "dst",
        "dst_path",
        "subpath",
        "display",
        "property",
    )
    assert pick(rows, *columns) == [
        ("link", "b", 0, "b", "resolved", "id of b.md", "b.md", None, "b", "up"),
        ("link", "b#h", 0, "b", "resolved", "id of b.md", "b.md", "#h", "B", None),
        ("embed", "pic.png", 0, "pic.png", "resolved", None, "img/pic.png", None, "pic.png", None),
        ("link", "gone", 0, "gone", "broken", None, None, None, "gone", None),
        ("link", "https://x.org", 0, "", "external", None, "https://x.org", None, "u", None),
        ("link", "#own", 0, "", "resolved", "id of a.md", "a.md", "#own", "own", None),
        ("link", "sub/c.md", 0, "c", "resolved", "id of sub/c.md", "sub/c.md", None, "e", None),
        ("link", "b#h", 1, "b", "resolved", "id of b.md", "b.md", "#h", "b > h", None),
    ]
    assert {row["src"] for row in rows} == {"id of a.md"}
    assert rows[1]["edge_id"] == ids.edge_id("id of a.md", "link", "b#h", 0)
    assert notes["a.md"][rows[1]["start"] : rows[1]["end"]] == "[[b#h|B]]"
    assert (rows[0]["start"], rows[0]["end"]) == (None, None)


def test_a_link_and_an_embed_of_one_target_are_counted_apart() -> None:
    rows = make_edges({"a.md": "[[b]] ![[b]] [[b]] ![[b]]"})
    assert pick(rows, "kind", "ordinal") == [("link", 0), ("embed", 0), ("link", 1), ("embed", 1)]


def test_tags_and_aliases() -> None:
    rows = make_edges({"a.md": "---\naliases: [One, Zwei, One]\ntags: [Work]\n---\n#work #work/Sub"})
    columns = ("kind", "raw_target", "target_key", "status", "dst", "dst_path")
    assert pick(rows, *columns) == [
        ("tag", "Work", "work", "resolved", None, "work"),
        ("tag", "work/Sub", "work/sub", "resolved", None, "work/sub"),
        ("alias", "One", "one", "resolved", None, "One"),
        ("alias", "Zwei", "zwei", "resolved", None, "Zwei"),
    ]


def test_references_to_blocks() -> None:
    block = "65f0c0de-1234-5678-9abc-def012345678"
    batch = pa.RecordBatch.from_pylist(
        [
            {
                "note_id": "id of a.md",
                "path": "a.md",
                "aliases": None,
                "tags": None,
                "links": [
                    {
                        "kind": "link",
                        "form": "blockref",
                        "target": block,
                        "display": f"(({block}))",
                        "start": 0,
                        "end": 40,
                    }
                ],
            }
        ],
        schema=pa.schema(
            [parse_vault({"x.md": ""}).schema.field(name) for name in ("note_id", "path", "aliases", "tags", "links")]
        ),
    )
    for blocks, expected in (({}, ("broken", None, block)), ({block: "b.md"}, ("resolved", "id of b.md", block))):
        index = VaultIndex(["a.md", "b.md"], blocks=blocks)
        rows = edges(batch, index, {"b.md": "id of b.md"}).to_pylist()
        assert pick(rows, "status", "dst", "target_key") == [expected]


def test_no_notes() -> None:
    assert make_edges({}) == []


words = st.sampled_from(
    ["[[alpha]] ", "[[beta|x]] ", "![[pic.png]] ", "[t](sub/alpha.md) ", "[[delta]] ", "alpha ", "delta "]
)
contents = st.builds(
    lambda aliases, parts: f"---\naliases: {aliases}\n---\n" + "".join(parts),
    st.sampled_from(["[]", "[delta]", "[gamma ray]"]),
    st.lists(words, max_size=6),
)
vaults = st.dictionaries(
    st.sampled_from(["alpha.md", "beta.md", "sub/alpha.md", "sub/delta.md", "z/gamma ray.md"]), contents, max_size=5
)
media = st.sets(st.sampled_from(["pic.png", "sub/pic.png"]))


def whole_graph(notes: Mapping[str, str], files: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """All edges of a vault, mentions included, by the path of their note."""
    parsed = parse_vault(notes)
    names = [
        name
        for row in parsed.select(["note_id", "path", "title", "aliases"]).to_pylist()
        for name in note_names(row["note_id"], row["path"], row["title"], row["aliases"])
    ]
    rows = make_edges(notes, files) + MentionFinder(names).find(parsed).to_pylist()
    return {path: [row for row in rows if row["src"] == f"id of {path}"] for path in notes}


@settings(max_examples=EXAMPLES)
@given(vaults, media, vaults, media)
def test_edges_change_only_where_a_note_or_a_name_changed(
    before: dict[str, str], files_before: set[str], after: dict[str, str], files_after: set[str]
) -> None:
    """What incremental updates rest on: names that come or go say which notes to look at again.

    For links and mentions there were, by the key of the edge; for mentions there may now be, by looking for the names.
    """
    old, new = whole_graph(before, files_before), whole_graph(after, files_after)
    names: dict[bool, set[tuple[str, str]]] = {}
    for side, notes, files in ((False, before, files_before), (True, after, files_after)):
        names[side] = {(target_key(path), path) for path in files}
        for row in parse_vault(notes).to_pylist():
            names[side] |= {(key, row["path"]) for key in names_of(row["path"], row["title"], row["aliases"])}
    changed = {key for key, _ in names[False] ^ names[True]}
    for path, rows in new.items():
        if before.get(path) != after[path]:
            continue
        affected = any(row["target_key"] in changed for row in old[path])
        mentioned = any(row["target_key"] in changed and row["kind"] == "mention" for row in rows)
        if not affected and not mentioned:
            assert rows == old[path], path
