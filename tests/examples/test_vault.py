"""The example vault holds what its README promises, so that the demo has something of everything to show."""

from __future__ import annotations

import datetime as dt
import re
import struct
from functools import cache
from pathlib import Path

import pytest

from pkm_pipelines.knowledge.language import detect
from pkm_pipelines.knowledge.links import VaultIndex
from pkm_pipelines.knowledge.markdown import parse_note
from pkm_pipelines.knowledge.note import Link, ParsedNote

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VAULT = EXAMPLES / "vault"
IMAGE = "Attachments/crumb.png"
LONE = "Shed/The oven at the end of the garden.md"


@cache
def files() -> list[str]:
    """Paths of what is content: no dot files or folders."""
    found = (path.relative_to(VAULT) for path in VAULT.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


@cache
def notes() -> dict[str, ParsedNote]:
    return {
        path: parse_note((VAULT / path).read_bytes().decode("utf-8"), path) for path in files() if path.endswith(".md")
    }


def links() -> list[tuple[str, Link, str, str | None]]:
    """Each link: the note it stands in, the link, its status and the path it leads to."""
    index = VaultIndex(files())
    found: list[tuple[str, Link, str, str | None]] = []
    for path, note in notes().items():
        for link in note.links:
            resolution = index.resolve(link.target, link.subpath, path, form=link.form)
            found.append((path, link, resolution.status, resolution.path))
    return found


def test_size() -> None:
    assert len(notes()) >= 40
    assert len({path.split("/")[0] for path in notes() if "/" in path}) >= 8
    for path, note in notes().items():
        assert 80 <= note.word_count <= 450, (path, note.word_count)


def test_every_note_is_clean_utf8_without_problems() -> None:
    for path, note in notes().items():
        data = (VAULT / path).read_bytes()
        assert b"\r" not in data and b"\0" not in data and not data.startswith(b"\xef\xbb\xbf")
        assert data.endswith(b"\n") and not data.endswith(b"\n\n"), path
        assert note.problems == [], path
        assert note.front_matter, path
        assert "lorem" not in note.content.casefold()


def test_the_two_notes_yet_to_be_written_are_the_only_broken_links() -> None:
    broken = [(path, link.target) for path, link, status, _ in links() if status == "broken"]
    assert sorted(broken) == [("Home.md", "Panettone"), ("Ingredients/Flour.md", "Desem")]


def test_every_heading_and_block_that_is_linked_is_there() -> None:
    linked = 0
    for path, link, status, target in links():
        if status != "resolved" or not link.subpath:
            continue
        assert target is not None
        note = notes()[target]
        names = {f"#{heading.text}" for heading in note.headings} | {f"#^{block.id}" for block in note.block_ids}
        assert link.subpath in names, (path, link)
        linked += 1
    assert linked >= 6


def test_one_note_stands_alone_and_the_others_hang_together() -> None:
    neighbours: dict[str, set[str]] = {path: set() for path in notes()}
    for path, _, status, target in links():
        if status == "resolved" and target in neighbours and target != path:
            neighbours[path].add(target)
            neighbours[target].add(path)
    assert [path for path, others in neighbours.items() if not others] == [LONE]
    reached, waiting = {"Home.md"}, ["Home.md"]
    while waiting:
        for path in neighbours[waiting.pop()] - reached:
            reached.add(path)
            waiting.append(path)
    assert reached == set(notes()) - {LONE}


def test_every_kind_of_link_is_shown() -> None:
    kinds = {(link.kind, link.form, status) for _, link, status, _ in links()}
    assert {
        ("link", "wikilink", "resolved"),
        ("link", "markdown", "resolved"),
        ("link", "markdown", "external"),
        ("link", "frontmatter", "resolved"),
        ("embed", "wikilink", "resolved"),
    } <= kinds
    embeds = {(target, (link.subpath or "")[:2]) for _, link, _, target in links() if link.kind == "embed"}
    assert {(IMAGE, ""), ("Methods/Baker's percentage.md", "#T"), ("Daily/2026-01-18.md", "#^")} <= embeds
    text = "\n".join(note.content for note in notes().values())
    assert re.search(r"\[\[Wheat\\\|wheat\]\]", text), "an alias in a table"
    assert "%20" in text, "a percent-encoded destination"


def test_every_kind_of_markup_is_shown() -> None:
    everything = list(notes().values())
    assert {task.status for note in everything for task in note.tasks} == {" ", "x", "/", "-", "?"}
    assert {callout.type for note in everything for callout in note.callouts} >= {"tip", "warning", "quote", "danger"}
    assert {callout.fold for note in everything for callout in note.callouts} >= {"-"}
    assert {language for note in everything for language in note.code_languages} == {"python", "mermaid"}
    assert sum(len(note.footnotes) for note in everything) == 2
    assert sum(len(note.block_ids) for note in everything) >= 5
    tags = {tag for note in everything for tag in note.tags}
    assert {"bread", "bread/rye", "bread/sourdough", "science/microbes", "method/mixing"} <= tags
    assert {span.tag for note in everything for span in note.tag_spans} >= {"bread", "bread/rye"}
    assert any(note.aliases for note in everything)
    assert any("%%" in note.content for note in everything)


def test_front_matter_has_values_of_every_type() -> None:
    types = {type(value) for note in notes().values() for value in (note.front_matter or {}).values()}
    assert {str, int, float, bool, list} <= types
    assert notes()["Starter/Agnes.md"].created_at == dt.datetime(2026, 1, 18, tzinfo=dt.UTC)


def test_languages() -> None:
    assert {path: code for path, note in notes().items() if (code := detect(note.text)) != "en"} == {
        "Loaves/Roggenmischbrot.md": "de",
        "Loaves/食パン.md": "ja",
    }


def test_the_rename_that_the_readme_follows() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    agnes = notes()["Starter/Agnes.md"]
    assert "The jar on the windowsill" in agnes.aliases
    assert "[[Agnes]]" in notes()["Daily/2026-03-15.md"].content
    assert "Starter/Agnes.md" in readme and "Agnes the Elder" in readme
    linking = {path for path, _, _, target in links() if target == "Starter/Agnes.md"}
    stated = re.search(r"\*\*(\d+) notes\*\* link to her", readme)
    assert stated and int(stated[1]) == len(linking)


@pytest.mark.parametrize("name", ["Agnes", "Agnes|starter", r"Agnes\|starter", "Agnes#Her habits"])
def test_the_readme_command_finds_every_spelling_of_the_link(name: str) -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    pattern = re.search(r"s/(\S+)/\[\[Agnes the Elder/g", readme)
    assert pattern
    assert re.sub(pattern[1], "[[Agnes the Elder", f"[[{name}]]") == f"[[Agnes the Elder{name.removeprefix('Agnes')}]]"
    assert re.sub(pattern[1], "x", "[[Agnes Martin]]") == "[[Agnes Martin]]"


def test_the_image_is_a_small_png() -> None:
    data = (VAULT / IMAGE).read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) < 50_000
    assert struct.unpack(">II", data[16:24]) == (720, 450)


def test_nothing_else_lies_in_the_vault() -> None:
    assert [path for path in files() if not path.endswith(".md")] == [IMAGE]
