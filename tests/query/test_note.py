"""One note: found by whatever one calls it, with its neighbours and its past."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.model.errors import QueryError
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.model.tables import KNOWLEDGE_GRAPH, PROCESSED_NOTES, RAW_NOTES
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.query.note import note, obsidian_url
from pkm_pipelines.settings import Settings

DAY = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def fill(stores: Stores, spec: TableSpec, rows: list[dict[str, Any]]) -> None:
    """Rows with every required column that a test does not care about filled in."""
    blank = {pa.string(): "x", pa.int64(): 0, pa.date32(): DAY.date()}
    full = [
        {
            column.name: row.get(column.name, blank.get(column.type, DAY) if column.required else None)
            for column in spec.columns
        }
        for row in rows
    ]
    stores.iceberg.ensure(spec).append(pa.Table.from_pylist(full, schema=spec.arrow))


NOTES: list[dict[str, Any]] = [
    {
        "note_id": "id-rye",
        "source": "vault",
        "path": "recipes/Rye bread.md",
        "title": "Rye bread",
        "aliases": ["Roggenbrot"],
        "tags": ["baking/bread"],
        "front_matter": '{"hydration": 80, "when": "2026-01-01"}',
        "content": "See [[Starter]].",
        "word_count": 2,
        "problems": [{"code": "bad-yaml", "message": "line 3"}],
    },
    {"note_id": "id-starter", "source": "vault", "path": "Starter.md", "title": "Sourdough starter"},
    {"note_id": "id-log-a", "source": "vault", "path": "2025/Log.md", "title": "Log"},
    {"note_id": "id-log-b", "source": "vault", "path": "2026/Log.md", "title": "Log"},
    {"note_id": "id-readme-1", "source": "vault", "path": "README.md", "title": "Vault"},
    {"note_id": "id-readme-2", "source": "work", "path": "README.md", "title": "Work"},
    {"note_id": "id-gone", "source": "vault", "path": "Gone.md", "title": "Gone", "deleted_at": DAY},
    {"note_id": "id-gone-starter", "source": "vault", "path": "old/Starter.md", "title": "Starter", "deleted_at": DAY},
    {"note_id": "id-cafe", "source": "vault", "path": "Caf\u00e9.md", "title": "Caf\u00e9"},
]
EDGES: list[dict[str, Any]] = [
    {
        "edge_id": "1", "src": "id-rye", "kind": "link", "status": "resolved", "raw_target": "Starter",
        "dst": "id-starter", "dst_path": "Starter.md", "subpath": "#Feeding", "start": 4, "end": 15,
    },
    {"edge_id": "2", "src": "id-rye", "kind": "link", "status": "broken", "raw_target": "Oven", "start": 40, "end": 48},
    {
        "edge_id": "3", "src": "id-rye", "kind": "link", "status": "external", "raw_target": "https://e.org",
        "dst_path": "https://e.org", "start": 20, "end": 33,
    },
    {"edge_id": "4", "src": "id-rye", "kind": "link", "status": "resolved", "raw_target": "Vault", "dst": "id-readme-1",
     "dst_path": "README.md", "property": "up"},
    {"edge_id": "5", "src": "id-rye", "kind": "tag", "status": "resolved", "raw_target": "baking/bread"},
    {"edge_id": "6", "src": "id-log-a", "kind": "mention", "status": "resolved", "raw_target": "Rye bread",
     "dst": "id-rye", "start": 0, "end": 9},
]  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    {"note_id": "id-rye", "change_type": "INSERT", "path": "Rye.md", "changed_at": DAY, "change_id": "1", "lsn": 1},
    {
        "note_id": "id-rye", "change_type": "UPDATE_AFTER", "path": "recipes/Rye bread.md", "previous_path": "Rye.md",
        "changed_at": DAY + dt.timedelta(days=2), "change_id": "2", "lsn": 9, "commit_id": "abc", "author": "Ada <a@b>",
    },
    {"note_id": "id-rye", "change_type": "UPDATE_AFTER", "path": "Rye.md", "changed_at": DAY, "change_id": "3",
     "lsn": 2},
    {"note_id": "id-starter", "change_type": "INSERT", "path": "Starter.md", "changed_at": DAY, "change_id": "4"},
]  # fmt: skip


@pytest.fixture(scope="module")
def stores(ram_folder: Path) -> Stores:
    home = ram_folder / "note-view"
    home.mkdir()
    sources = [{"name": "vault", "path": "My vault"}, {"name": "work", "kind": "git", "path": "work.git"}]
    stores = Stores(Settings(home=home, sources=sources))
    fill(stores, PROCESSED_NOTES, NOTES)
    fill(stores, KNOWLEDGE_GRAPH, EDGES)
    fill(stores, RAW_NOTES, CHANGES)
    return stores


@pytest.mark.parametrize(
    ("asked", "note_id"),
    [
        ("id-rye", "id-rye"),
        ("recipes/Rye bread.md", "id-rye"),
        ("./recipes/Rye bread", "id-rye"),
        ("Rye bread", "id-rye"),
        ("rye BREAD", "id-rye"),
        ("roggenbrot", "id-rye"),
        ("Bread", None),
        ("2025/log", "id-log-a"),
        ("vault:README", "id-readme-1"),
        ("work:README.md", "id-readme-2"),
        # By its path alone a living note is meant, though a deleted one has the very title.
        ("Starter", "id-starter"),
        ("old/Starter", "id-gone-starter"),
        ("Gone", "id-gone"),
        # NFD, as macOS writes file names.
        ("Cafe\u0301", "id-cafe"),
    ],
)
def test_finds_a_note_by_what_one_calls_it(stores: Stores, asked: str, note_id: str | None) -> None:
    if note_id is None:
        with pytest.raises(QueryError, match=r"did you mean recipes/Rye bread\.md"):
            note(stores, asked)
    else:
        assert note(stores, asked).note_id == note_id


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("Log", "'Log' could be any of 2025/Log.md, 2026/Log.md; give the path or id"),
        ("README.md", "could be any of vault:README.md, work:README.md"),
        ("nothing of the kind", "no note is called 'nothing of the kind'; `pkm search` looks in the text"),
        ("  ", "which note"),
        ("/", "which note"),
        ("%", "no note is called"),
        ("' OR 1=1 --", "no note is called"),
    ],
)
def test_what_is_unknown_or_ambiguous_is_said(stores: Stores, asked: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        note(stores, asked)


def test_shows_what_the_note_says_of_itself(stores: Stores) -> None:
    view = note(stores, "id-rye")
    assert (view.source, view.path, view.title) == ("vault", "recipes/Rye bread.md", "Rye bread")
    assert view.front_matter == {"hydration": 80, "when": "2026-01-01"}
    assert (view.aliases, view.tags) == (("Roggenbrot",), ("baking/bread",))
    assert view.problems == ({"code": "bad-yaml", "message": "line 3"},)
    assert view.content == "See [[Starter]]."
    assert view.obsidian_url == "obsidian://open?vault=My%20vault&file=recipes%2FRye%20bread.md"


def test_shows_links_in_the_order_of_the_text_those_of_front_matter_first(stores: Stores) -> None:
    links = note(stores, "id-rye").links
    assert [(link.status, link.path or link.raw_target, link.title) for link in links] == [
        ("resolved", "README.md", "Vault"),
        ("resolved", "Starter.md", "Sourdough starter"),
        ("external", "https://e.org", None),
        ("broken", "Oven", None),
    ]
    assert (links[1].subpath, links[1].start, links[1].end) == ("#Feeding", 4, 15)


def test_shows_backlinks(stores: Stores) -> None:
    assert [(link.kind, link.note_id, link.path) for link in note(stores, "Starter").backlinks] == [
        ("link", "id-rye", "recipes/Rye bread.md")
    ]


def test_mentions_are_no_links(stores: Stores) -> None:
    view = note(stores, "id-rye")
    assert view.backlinks == () and view.mentions == ()
    assert [(edge.path, edge.raw_target) for edge in view.mentioned_by] == [("2025/Log.md", "Rye bread")]
    other = note(stores, "id-log-a")
    assert other.links == ()
    assert [(edge.path, edge.title) for edge in other.mentions] == [("recipes/Rye bread.md", "Rye bread")]


def test_shows_the_past_newest_first(stores: Stores) -> None:
    history = note(stores, "id-rye").history
    assert [(event.change_type, event.path, event.previous_path) for event in history] == [
        ("UPDATE_AFTER", "recipes/Rye bread.md", "Rye.md"),
        ("UPDATE_AFTER", "Rye.md", None),
        ("INSERT", "Rye.md", None),
    ]
    assert (history[0].commit_id, history[0].author) == ("abc", "Ada <a@b>")


def test_a_deleted_note_has_a_past_and_no_address(stores: Stores) -> None:
    view = note(stores, "id-gone")
    assert view.deleted_at == DAY
    assert view.obsidian_url is None


def test_a_lakehouse_without_notes_says_what_to_do(work: Path) -> None:
    with pytest.raises(QueryError, match="pkm run"):
        note(Stores(Settings(home=work)), "x")


def test_a_lakehouse_with_notes_alone_shows_them(work: Path) -> None:
    stores = Stores(Settings(home=work))
    fill(stores, PROCESSED_NOTES, NOTES[:1])
    view = note(stores, "Rye bread")
    assert (view.links, view.backlinks, view.history, view.obsidian_url) == ((), (), (), None)


@given(st.text(min_size=1))
def test_the_address_brings_back_any_path(path: str) -> None:
    settings = Settings(home=Path("/x"), sources=[{"name": "s", "path": "A & B=100%/vault ü"}])
    url = obsidian_url(settings, "s", path)
    assert url is not None and url.isascii()
    assert parse_qs(urlsplit(url).query, keep_blank_values=True) == {"vault": ["vault ü"], "file": [path]}


def test_the_vault_of_a_repository_is_its_folder_or_the_part_that_is_the_vault() -> None:
    sources = [
        {"name": "bare", "kind": "git", "path": "/r/notes.git"},
        {"name": "part", "kind": "git", "path": "/r/site", "subfolder": "docs/vault"},
    ]
    settings = Settings(home=Path("/x"), sources=sources)
    assert obsidian_url(settings, "bare", "a.md") == "obsidian://open?vault=notes&file=a.md"
    assert obsidian_url(settings, "part", "a.md") == "obsidian://open?vault=vault&file=a.md"
    assert obsidian_url(settings, "none", "a.md") is None
