"""Where links lead: Obsidian's rules on small vaults, and what holds for every vault."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkm_pipelines.knowledge.links import Resolution, VaultIndex, file_keys, fold, names_of, target_key
from tests.conftest import BUDGETS, budget_name

EXAMPLES = 200 * BUDGETS[budget_name()]
FILES = (
    "Home.md",
    "LICENSE",
    "a/Note.md",
    "a/deep/Note.md",
    "a/deep/er/Other.md",
    "b/Note.md",
    "b/image.png",
    "b/image.png.md",
    "b/v1.2 notes.md",
    "data/x.md",
    "ta/x.md",
    "media/Sketch.PNG",
    "Ünï.md",
    "No\u00a0break.md",
    "license.md",
    "c/#1.md",
)


def resolve(target: str, from_path: str = "Home.md", form: str = "wikilink", subpath: str | None = None) -> str | None:
    return VaultIndex(FILES).resolve(target, subpath, from_path, form=form).path


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("home", "Home.md"),
        ("HOME.MD", "Home.md"),
        ("/Home", "Home.md"),
        ("./home.md", "Home.md"),
        ("a/note", "a/Note.md"),
        ("deep/note", "a/deep/Note.md"),
        ("er/Other", "a/deep/er/Other.md"),
        ("Other", "a/deep/er/Other.md"),
        ("a/x", None),  # neither data/x nor ta/x: a suffix is of whole folders
        ("a//note", "a/Note.md"),
        ("b/../a/Note", "a/Note.md"),
        ("../Home", None),  # above the root
        ("/Note", None),  # from the root only
        ("/a/Note", "a/Note.md"),
        ("image.png", "b/image.png"),
        ("image.png.md", "b/image.png.md"),
        ("image", None),
        ("sketch.png", "media/Sketch.PNG"),
        ("Sketch", None),
        ("v1.2 notes", "b/v1.2 notes.md"),
        ("LICENSE", "license.md"),
        ("license.md", "license.md"),
        (unicodedata.normalize("NFD", "ünï"), "Ünï.md"),
        ("no break", "No\u00a0break.md"),
        ("a/", None),
        ("a", None),
        ("", None),
        (".", None),
        ("..", None),
        ("/", None),
        (".md", None),
        ("#1", "c/#1.md"),
        ("|", None),
    ],
)
def test_target(target: str, path: str | None) -> None:
    assert resolve(target) == path


@pytest.mark.parametrize(
    ("from_path", "path"),
    [
        ("a/Here.md", "a/Note.md"),
        ("a/deep/Here.md", "a/deep/Note.md"),
        ("a/deep/er/Other.md", "a/Note.md"),  # none in its own folder: the shortest path, then the first
        ("b/Here.md", "b/Note.md"),
        ("Home.md", "a/Note.md"),
        ("elsewhere/Here.md", "a/Note.md"),
    ],
)
def test_the_nearest_of_several(from_path: str, path: str) -> None:
    assert resolve("Note", from_path) == path


def test_relative_paths_start_at_the_note() -> None:
    assert resolve("./Note", "a/deep/er/Other.md") is None
    assert resolve("../Note", "a/deep/er/Other.md") == "a/deep/Note.md"
    assert resolve("../../../b/Note.md", "a/deep/er/Other.md") == "b/Note.md"
    assert resolve("./er/Other", "a/deep/Note.md") == "a/deep/er/Other.md"


def test_an_exact_path_is_nearer_than_any_folder() -> None:
    index = VaultIndex(["a/b.md", "c/a/b.md", "c/x.md"])
    assert index.resolve("a/b", None, "c/x.md").path == "a/b.md"
    assert index.resolve("b", None, "c/x.md").path == "c/a/b.md"


def test_twins_that_differ_in_case() -> None:
    index = VaultIndex(["terminal.md", "Terminal.md"])
    assert index.resolve("terminal").path == "terminal.md"
    assert index.resolve("Terminal").path == "Terminal.md"
    assert index.resolve("TERMINAL").path == "Terminal.md"


def test_twins_of_unicode_forms() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Café.md") for form in ("NFC", "NFD"))
    assert VaultIndex([decomposed]).resolve("café") == Resolution("resolved", decomposed)
    assert VaultIndex([decomposed, composed]).resolve("Café").status == "resolved"


def test_a_link_within_the_note() -> None:
    index = VaultIndex(["a.md"])
    assert index.resolve("", "#h", "a.md") == Resolution("resolved", "a.md")
    assert index.resolve("", "#^b", "a.md", form="markdown") == Resolution("resolved", "a.md")
    assert index.resolve("", None, "a.md") == Resolution("broken", None)


def test_an_alias_is_no_target() -> None:
    """The index knows paths only, so there is no way to it."""
    assert VaultIndex(["a.md"]).resolve("Other name of a") == Resolution("broken", None)


@pytest.mark.parametrize(
    ("target", "form", "external"),
    [
        ("https://x.org", "wikilink", True),
        ("https://x.org/a.md", "markdown", True),
        ("mailto:a@b.c", "markdown", True),
        ("mailto:a@b.c", "autolink", True),
        ("//x.org", "markdown", True),
        ("obsidian://open", "frontmatter", True),
        ("Re:Zero", "wikilink", False),
        ("std::vector", "wikilink", False),
        ("C:", "markdown", False),
        ("a/b:c", "markdown", False),
        ("note", "markdown", False),
    ],
)
def test_external(target: str, form: str, external: bool) -> None:
    resolution = VaultIndex(["a.md"]).resolve(target, None, "a.md", form=form)
    assert resolution == (("external", target) if external else ("broken", None))


def test_logseq_namespaces_and_blocks() -> None:
    block = "65f0c0de-1234-5678-9abc-def012345678"
    index = VaultIndex(["pages/a___b.md", "pages/c%2Fd.md", "pages/d.md"], blocks={block: "pages/d.md"})
    assert index.resolve("A/B").path == "pages/a___b.md"
    assert index.resolve("c/d").path == "pages/c%2Fd.md"
    assert index.resolve("d").path == "pages/d.md"
    assert index.resolve("b").path is None
    assert index.resolve(block, form="blockref").path == "pages/d.md"
    assert index.resolve("0" * 36, form="blockref") == Resolution("broken", None)
    assert file_keys("pages/a___b.md") == {"a___b", "b"}


def test_keys() -> None:
    assert target_key("Folder/Näme.MD") == target_key(unicodedata.normalize("NFD", "näme")) == "näme"
    assert target_key("image.png") == "image.png"
    assert target_key("") == target_key("/") == ""
    assert file_keys("Folder/Näme.md") == {"näme"}
    assert names_of("f/File.md", "The Title", ["One", "TWO"]) == {"file", "the title", "one", "two"}
    assert names_of("f/File.md", None, None) == {"file"}


names = st.sampled_from(["a", "A", "b", "é", "e\u0301", "x.y", "n.md", "c d"])
paths = st.builds(
    lambda folders, name, suffix: "/".join([*folders, name]) + suffix,
    st.lists(names, max_size=3),
    names,
    st.sampled_from([".md", ".md", ".png", "", ".MD"]),
)
vaults = st.lists(paths, min_size=1, max_size=12, unique=True)
targets = st.one_of(
    paths,
    st.lists(st.sampled_from(["a", "b", "é", "x.y", "c d", ".", "..", "", "n.md"]), min_size=1, max_size=4).map(
        "/".join
    ),
    st.text(max_size=8),
)


@settings(max_examples=EXAMPLES)
@given(
    vaults, targets, paths, st.randoms(use_true_random=False), st.sampled_from(["wikilink", "markdown", "frontmatter"])
)
def test_the_order_of_the_files_does_not_count(files: list[str], target: str, here: str, random, form: str) -> None:
    shuffled = random.sample(files, len(files))
    expected = VaultIndex(files).resolve(target, None, here, form=form)
    assert VaultIndex(shuffled).resolve(target, None, here, form=form) == expected


@settings(max_examples=EXAMPLES)
@given(vaults, targets, paths)
def test_a_resolved_link_leads_to_a_file_of_its_key(files: list[str], target: str, here: str) -> None:
    """What incremental updates rest on: only files with the key of a target can answer it."""
    resolution = VaultIndex(files).resolve(target, None, here)
    if resolution.status == "resolved":
        assert resolution.path in files
        assert target_key(target) in file_keys(resolution.path or "")
    others = [path for path in files if target_key(target) not in file_keys(path)]
    assert VaultIndex(others).resolve(target, None, here).status != "resolved"
    keyed = [path for path in files if target_key(target) in file_keys(path)]
    assert VaultIndex(keyed).resolve(target, None, here) == resolution


@settings(max_examples=EXAMPLES)
@given(vaults, paths)
def test_every_file_is_reached_by_its_own_path(files: list[str], here: str) -> None:
    """Twins in case, Unicode form or `.md` share it; one of them answers."""
    index = VaultIndex(files)
    for path in files:
        twins = {other for other in files if fold(other).removesuffix(".md") == fold(path).removesuffix(".md")}
        assert index.resolve(f"/{path}", None, here).path in twins
        if "/" in path:
            assert index.resolve(path, None, here).path in twins


@settings(max_examples=EXAMPLES)
@given(st.text(max_size=20), st.text(max_size=20))
def test_fold(one: str, two: str) -> None:
    assert fold(fold(one)) == fold(one)
    assert fold(unicodedata.normalize("NFD", one)) == fold(unicodedata.normalize("NFC", one))
    if unicodedata.normalize("NFC", one).casefold() == unicodedata.normalize("NFC", two).casefold():
        assert fold(one) == fold(two)


def test_a_large_vault_is_quick() -> None:
    """50,000 notes and as many links, a thousand of one name: well under a second a pass on any machine of today."""
    files = [f"folder {number % 100}/sub/Note {number}.md" for number in range(49_000)]
    files += [f"docs/{number}/index.md" for number in range(1_000)]
    began = time.process_time()
    index = VaultIndex(files)
    for number in range(49_000):
        assert index.resolve(f"note {number}", None, "x.md").path is not None
    for number in range(1_000):
        assert index.resolve(f"docs/{number}/index", None, "x.md").path == f"docs/{number}/index.md"
        assert index.resolve("../index.md", None, f"docs/{number}/a/b.md").path == f"docs/{number}/index.md"
    assert time.process_time() - began < 10
