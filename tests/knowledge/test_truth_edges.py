"""Our edges between notes are those that two of three other tools agree on, but for differences with a reason.

The reasons stand in `tests/data/knowledge/edge_differences.toml`.
"""

from __future__ import annotations

import json
import posixpath
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pkm_pipelines.knowledge.links import VaultIndex
from pkm_pipelines.knowledge.note import Link
from tests.conftest import SHARED_DATA
from tests.support.vault_files import list_files, read_note

VAULTS = ["jackyzha0-garden", "kepano-obsidian"]
REASONS = tomllib.loads(
    (Path(__file__).parents[1] / "data" / "knowledge" / "edge_differences.toml").read_text(encoding="utf-8")
)

pytestmark = pytest.mark.usefixtures("shared_data")


class Edge(NamedTuple):
    """An edge between two notes."""

    path: str
    target: str


@cache
def truth(vault: str) -> dict[str, Any]:
    return json.loads((SHARED_DATA / "truth" / f"{vault}.json").read_text(encoding="utf-8"))["notes"]


@cache
def files(vault: str) -> frozenset[str]:
    return frozenset(list_files(SHARED_DATA / "vaults" / vault))


@cache
def ours(vault: str) -> dict[Edge, list[Link]]:
    """Every edge from a note to a note, and the links that make it."""
    index = VaultIndex(files(vault))
    found: dict[Edge, list[Link]] = {}
    for path in truth(vault):
        for link in read_note(SHARED_DATA / "vaults" / vault, path).links:
            status, target = index.resolve(link.target, link.subpath, path, form=link.form)
            if status == "resolved" and target is not None and target.endswith(".md"):
                found.setdefault(Edge(path, target), []).append(link)
    return found


def agreed(vault: str) -> set[Edge]:
    """The edges that at least two of the three tools have."""
    return {Edge(path, to) for path, note in truth(vault).items() for to in note["consensus"]["outlinks_2of3"]}


def known(vault: str) -> set[Edge]:
    """The edges that at least one tool has."""
    single = {Edge(path, to) for path, note in truth(vault).items() for to in note["consensus"]["outlinks_1of3"]}
    return agreed(vault) | single


def is_from_root(vault: str, edge: Edge, link: Link) -> bool:
    """A Markdown link whose path, seen from the note's own folder, leads nowhere."""
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(edge.path), link.target))
    return link.form == "markdown" and not {beside, f"{beside}.md"} & files(vault)


RULES = {
    "from-root": is_from_root,
    "self": lambda _, edge, link: edge.path == edge.target and link.target == "" and link.subpath is not None,
    "property": lambda _, __, link: link.form == "frontmatter",
}


def test_the_vaults_are_whole() -> None:
    for vault in VAULTS:
        assert {path for path in files(vault) if path.endswith(".md")} == set(truth(vault))


@pytest.mark.parametrize("vault", VAULTS)
def test_no_agreed_edge_is_missing(vault: str) -> None:
    assert agreed(vault) - set(ours(vault)) == set()


@pytest.mark.parametrize("vault", VAULTS)
def test_every_edge_of_any_tool_is_ours(vault: str) -> None:
    """One tool follows Obsidian's rules; where it stands alone we still agree with it."""
    assert known(vault) - set(ours(vault)) == set()


@pytest.mark.parametrize("vault", VAULTS)
def test_every_other_edge_has_its_reason(vault: str) -> None:
    single = {Edge(item["path"], item["target"]) for item in REASONS["difference"] if item["vault"] == vault}
    counts = {item["rule"]: item["count"] for item in REASONS["rule"] if item["vault"] == vault}
    explained: Counter[str] = Counter()
    unexplained: list[Edge] = []
    common = agreed(vault) | single
    for edge, links in ours(vault).items():
        if edge in common:
            continue
        rule = next((name for name in counts if all(RULES[name](vault, edge, link) for link in links)), None)
        if rule is None:
            unexplained.append(edge)
        else:
            explained[rule] += 1
    assert unexplained == []
    assert dict(explained) == counts
    assert single <= set(ours(vault)) - agreed(vault), "an explained difference is there no more"


def test_broken_links_of_the_garden() -> None:
    """What the tool that follows Obsidian's rules cannot resolve, we cannot either, and nothing else."""
    index = VaultIndex(files("jackyzha0-garden"))
    for path, note in truth("jackyzha0-garden").items():
        parsed = read_note(SHARED_DATA / "vaults" / "jackyzha0-garden", path)
        broken = {
            link.target
            for link in parsed.links
            if link.kind == "link" and index.resolve(link.target, link.subpath, path, form=link.form).status == "broken"
        }
        assert broken == set(note["helper_rule"]["broken"]), path
