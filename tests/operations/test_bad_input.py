"""Bad input never stops a run and is never silent: each odd thing has a row or a listed problem."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from pkm_pipelines.lakehouse import Lakehouse
from tests.support.lake import open_lake
from tests.support.privileges import unprivileged
from tests.support.vaults import write_vault

BIG = "Big"


@pytest.fixture(scope="module")
def vault(ram_folder: Path) -> Path:
    root = ram_folder / "odd vault"
    root.mkdir()
    files: dict[str, bytes] = {
        "Good.md": b"# Good\n\nSee [[Broken YAML]] and [[Empty]].\n",
        "Broken YAML.md": b"---\ntitle: [unclosed\n---\n# Broken\n",
        "Templated.md": b"---\ntitle: {{title}}\ndate: {{date:YYYY}}\n---\nFrom a template.\n",
        "Latin.md": "Caf\u00e9 au lait".encode("latin-1"),
        "CRLF.md": b"---\r\ntags: [win]\r\n---\r\n# Windows\r\n\r\nText #dos.\r\n",
        "BOM.md": "\ufeff---\ntags: [bom]\n---\n# Marked\n".encode(),
        "NUL.md": b"# Zero\n\nbe\0fore\n",
        "Empty.md": b"",
        f"{BIG}.md": b"# Big\n\n" + b"All work and no play makes Jack a dull boy.\n\n" * 115_000,
        ("n" * 147) + ".md": b"# Long name\n",
        "\U0001f35e\U0001f9c8.md": b"# Emoji name\n",
        "Case.md": b"# Case\n",
        "case.md": b"# Lower case\n",
        unicodedata.normalize("NFC", "\u00e9t\u00e9.md"): b"# NFC\n",
        unicodedata.normalize("NFD", "\u00e9t\u00e9.md"): b"# NFD\n",
        "Board.canvas": b"{}",
        "Note.sync-conflict-20260101-101010-ABCDEFG.md": b"# Conflict\n",
        ".Away.md.icloud": b"",
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    (root / "Folder.md").mkdir()
    (root / "Folder.md" / "Inside.md").write_bytes(b"# Inside\n")
    (root / "Loop").symlink_to(root)
    (root / "Self.md").symlink_to("Self.md")
    (root / "Through.md").symlink_to("Good.md/nothing")
    (root / "Too long.md").symlink_to("n" * 300)
    (root / "Outside.md").symlink_to("/etc/hostname")
    (root / ".obsidian").mkdir()
    (root / ".obsidian" / "plugin.md").write_bytes(b"# No content\n")
    return root


@pytest.fixture(scope="module")
def lake(ram_folder: Path, vault: Path) -> Iterator[Lakehouse]:
    with open_lake(ram_folder / "odd lake", vault) as lake:
        lake.update()
        yield lake


def codes(lake: Lakehouse) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for problem in lake.problems():
        found.setdefault(problem.path, set()).add(problem.code)
    return found


def notes(lake: Lakehouse) -> dict[str, dict[str, object]]:
    return {row["path"]: row for row in lake.tables.read("silver.processed_notes").read_all().to_pylist()}


def test_every_readable_note_is_a_row(lake: Lakehouse) -> None:
    found = notes(lake)
    wanted = {
        "Good.md", "Broken YAML.md", "Templated.md", "Latin.md", "CRLF.md", "BOM.md", "NUL.md", "Empty.md", f"{BIG}.md",
        ("n" * 147) + ".md", "\U0001f35e\U0001f9c8.md", "Case.md", "case.md", "Folder.md/Inside.md",
        unicodedata.normalize("NFC", "\u00e9t\u00e9.md"),
    }  # fmt: skip
    assert found["CRLF.md"]["tags"] == ["win", "dos"]
    assert found["BOM.md"]["tags"] == ["bom"]
    assert found["Empty.md"]["word_count"] == 0
    assert found[f"{BIG}.md"]["word_count"] == 1 + 10 * 115_000
    assert found.keys() == wanted | {unicodedata.normalize("NFD", "\u00e9t\u00e9.md")}


def test_what_is_odd_is_listed(lake: Lakehouse) -> None:
    found = codes(lake)
    assert found["Latin.md"] == {"invalid-utf8"}
    assert found["NUL.md"] == {"nul-bytes"}
    for path in ("Broken YAML.md", "Templated.md"):
        assert found[path], path
    assert found["Note.sync-conflict-20260101-101010-ABCDEFG.md"] == {"conflict-copy"}
    assert found["Away.md"] == {"placeholder"}
    assert found[unicodedata.normalize("NFD", "\u00e9t\u00e9.md")] == {"name-twin"}
    assert found["Outside.md"] == {"symlink-outside"}
    assert found["Loop"] == found["Self.md"] == {"symlink-loop"}
    assert found["Through.md"] == {"symlink-broken"}
    assert found["Too long.md"] == {"unreadable"}
    assert len(found) == 12, "and nothing else is"


def test_bytes_are_kept_where_text_would_lose_them(lake: Lakehouse, vault: Path) -> None:
    rows = {row["path"]: row for row in lake.tables.read("bronze.raw_notes").read_all().to_pylist()}
    for name in ("Latin.md", "NUL.md"):
        assert rows[name]["content_bytes"] == (vault / name).read_bytes()
        assert "\N{REPLACEMENT CHARACTER}" in rows[name]["content"]
    assert rows["Good.md"]["content_bytes"] is None


def test_both_twins_are_there(lake: Lakehouse) -> None:
    titles = {row["title"] for row in notes(lake).values()}
    assert {"NFC", "NFD", "Case", "Lower case"} <= titles


def test_the_canvas_is_media(lake: Lakehouse) -> None:
    paths = lake.tables.read("bronze.raw_media", columns=["path"]).read_all()["path"].to_pylist()
    assert "Board.canvas" in paths


def test_everything_is_searchable_but_the_empty(lake: Lakehouse) -> None:
    assert lake.search("All work and no play", k=1, mode="text")[0].path == f"{BIG}.md"


def test_an_unreadable_note_is_listed_and_not_deleted(work: Path) -> None:
    vault = write_vault(work / "vault", {"Shut.md": "# Shut\n", "Folder/Below.md": "# Below\n", "Open.md": "# Open\n"})
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        (vault / "Open.md").write_text("# Open\n\nTo the world.\n")
        shut = [vault / "Shut.md", vault / "Folder"]
        for path in shut:
            path.chmod(0)
        with unprivileged():
            lake.update()
            found = notes(lake)
            assert codes(lake) == {"Shut.md": {"unreadable"}, "Folder/": {"unreadable"}}
            assert {row["path"]: row["deleted_at"] for row in found.values()} == dict.fromkeys(found)
            assert found.keys() == {"Shut.md", "Folder/Below.md", "Open.md"}
            assert lake.search("to the world", k=1, mode="text")[0].path == "Open.md"
        for path in shut:
            path.chmod(0o700)
        lake.update()
        assert codes(lake) == {}
