"""What we find in a note is what Obsidian's own index holds of it.

The dumps are Obsidian's `metadataCache`, made in Obsidian by the tests of the Tasks plugin. Their offsets count
UTF-16 units, ours count characters.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pkm_pipelines.knowledge.links import VaultIndex
from pkm_pipelines.knowledge.markdown import parse_note
from pkm_pipelines.knowledge.note import Link, ParsedNote
from tests.conftest import SHARED_DATA
from tests.support.vault_files import list_files

DUMPS = SHARED_DATA / "truth" / "tasks-demo.obsidian-cache"
NAMES = sorted(path.stem for path in DUMPS.glob("*.json"))

pytestmark = pytest.mark.usefixtures("shared_data")


@cache
def dump(name: str) -> dict[str, Any]:
    return json.loads((DUMPS / f"{name}.json").read_text(encoding="utf-8"))


@cache
def parsed(name: str) -> ParsedNote:
    return parse_note(dump(name)["fileContents"], dump(name)["filePath"])


@cache
def vault() -> VaultIndex:
    return VaultIndex(list_files(SHARED_DATA / "vaults" / "tasks-demo"))


def cached(name: str, key: str) -> list[dict[str, Any]]:
    return dump(name)["cachedMetadata"].get(key, [])


def span(name: str, found: dict[str, Any]) -> tuple[int, int]:
    """Obsidian's position of something, in characters."""
    units = dump(name)["fileContents"].encode("utf-16-le")
    offsets = [found["position"][side]["offset"] for side in ("start", "end")]
    start, end = (len(units[: 2 * offset].decode("utf-16-le")) for offset in offsets)
    return start, end


def raw(link: Link) -> str:
    """What Obsidian calls `link`: path and subpath."""
    return link.target + (link.subpath or "")


def internal(name: str, kind: str) -> list[Link]:
    """Links of the body as Obsidian's index keeps them: it leaves out external ones."""
    found = [link for link in parsed(name).links if link.kind == kind and link.property is None]
    return [link for link in found if vault().resolve(link.target, link.subpath, form=link.form).status != "external"]


def test_every_dump_is_here() -> None:
    assert len(NAMES) >= 41
    vault_root = SHARED_DATA / "vaults" / "tasks-demo"
    for name in NAMES:
        content = (vault_root / dump(name)["filePath"]).read_bytes().decode()
        assert content == dump(name)["fileContents"], f"{name} is not the note that Obsidian read"


@pytest.mark.parametrize("name", NAMES)
def test_tags(name: str) -> None:
    note = parsed(name)
    assert [("#" + tag.tag, (tag.start, tag.end)) for tag in note.tag_spans] == [
        (found["tag"], span(name, found)) for found in cached(name, "tags")
    ]
    in_front = ["#" + tag for tag in note.front_matter_tags]
    assert in_front == (dump(name)["parseFrontMatterTags"] or [])
    assert in_front + ["#" + tag.tag for tag in note.tag_spans] == dump(name)["getAllTags"]


@pytest.mark.parametrize("name", NAMES)
def test_headings(name: str) -> None:
    assert [(heading.level, heading.text, (heading.start, heading.end)) for heading in parsed(name).headings] == [
        (found["level"], found["heading"], span(name, found)) for found in cached(name, "headings")
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "key"), [("link", "links"), ("embed", "embeds")])
def test_links_and_embeds(name: str, kind: str, key: str) -> None:
    ours = [(raw(link), link.display, (link.start, link.end)) for link in internal(name, kind)]
    assert ours == [(found["link"], found["displayText"], span(name, found)) for found in cached(name, key)]
    content = dump(name)["fileContents"]
    assert [content[link.start : link.end] for link in internal(name, kind)] == [
        found["original"] for found in cached(name, key)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_front_matter(name: str) -> None:
    assert parsed(name).front_matter == dump(name)["cachedMetadata"].get("frontmatter")
    links = [link for link in parsed(name).links if link.property is not None]
    assert [(link.property, raw(link), link.display) for link in links] == [
        (found["key"], found["link"], found["displayText"]) for found in cached(name, "frontmatterLinks")
    ]
    assert {(link.form, link.start, link.end) for link in links} <= {("frontmatter", None, None)}


@pytest.mark.parametrize("name", NAMES)
def test_tasks(name: str) -> None:
    """Obsidian lets some items begin with their indentation; the bullet is where we say they begin."""
    content = dump(name)["fileContents"]
    tasks = [found for found in cached(name, "listItems") if "task" in found]
    assert [(task.status, task.end) for task in parsed(name).tasks] == [
        (found["task"], span(name, found)[1]) for found in tasks
    ]
    for task, found in zip(parsed(name).tasks, tasks, strict=True):
        start = span(name, found)[0]
        assert content[start : task.start].strip() == ""
        assert content[task.start : task.end].split()[0].strip("0123456789") in ("-", "*", "+", ".", ")")


@pytest.mark.parametrize("name", NAMES)
def test_block_ids(name: str) -> None:
    blocks: dict[str, dict[str, Any]] = dump(name)["cachedMetadata"].get("blocks", {})
    assert {block.id: (block.start, block.end) for block in parsed(name).block_ids} == {
        key: span(name, found) for key, found in blocks.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_link_resolution(name: str) -> None:
    for link, path in dump(name)["resolveLinkToPath"].items():
        target, hash_sign, subpath = link.partition("#")
        resolution = vault().resolve(target, hash_sign + subpath or None, dump(name)["filePath"])
        assert resolution == (("broken", None) if path is None else ("resolved", path)), link


@pytest.mark.parametrize("name", NAMES)
def test_every_link_obsidian_resolved_is_one_of_ours(name: str) -> None:
    """The keys of the dump's resolutions are the links of the note, front matter's included."""
    links = [link for link in parsed(name).links if link.property is not None] + internal(name, "link")
    assert {raw(link) for link in links + internal(name, "embed")} == set(dump(name)["resolveLinkToPath"])


def test_whole_index_of_links(shared_data: Path) -> None:
    """`metadataCache/resolvedLinks`, where the data has it: the number of links between each two files."""
    file = shared_data / "truth" / "tasks-demo.obsidian-cache" / "metadataCache" / "resolvedLinks.json"
    if not file.is_file():
        pytest.skip("the data has no dump of resolvedLinks")
    root = shared_data / "vaults" / "tasks-demo"
    for path, expected in json.loads(file.read_text(encoding="utf-8")).items():
        if not path.endswith(".md") or not (root / path).is_file():
            continue
        counted: dict[str, int] = {}
        for link in parse_note((root / path).read_bytes().decode(), path).links:
            status, target = vault().resolve(link.target, link.subpath, path, form=link.form)
            if status == "resolved" and target is not None:
                counted[target] = counted.get(target, 0) + 1
        assert counted == expected, path
