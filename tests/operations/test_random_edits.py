"""Any road of edits ends where a fresh build of the last state would begin."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.lake import assert_same, open_lake

FOLDERS = ("", "a", "b", "a/c")
# Few names, so that notes meet: the same one in two folders, in another case, as a title and as an alias.
NAMES = ("Bread", "bread", "Flour", "Sour dough", "面包", "Tea time")
WORDS = ("Bread", "of flour", "sour dough", "面包很好", "tea time", "patience", "#grain/rye", "#1984")

paths = st.builds(
    lambda folder, name: f"{folder}/{name}.md".lstrip("/"), st.sampled_from(FOLDERS), st.sampled_from(NAMES)
)
links = st.sampled_from(
    [
        *(f"[[{name}]]" for name in NAMES),
        "[[a/Bread]]",
        "[[Flour#Crumb|crumb]]",
        "![[pic.png]]",
        "[x](Tea%20time.md)",
        "[[#Own]]",
    ]
)
texts = st.lists(st.one_of(st.sampled_from(WORDS), links), max_size=6).map(" ".join)
fronts = st.sampled_from(
    ["", "---\naliases: [Patience]\n---\n", "---\ntitle: Flour\ntags: [x, y/z]\n---\n", "---\n{{bad\n---\n"]
)
edits = st.one_of(
    st.tuples(st.just("write"), paths, st.builds(str.__add__, fronts, texts)),
    st.tuples(st.just("append"), paths, texts),
    st.tuples(st.just("delete"), paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.just("move folder"), st.sampled_from(("a", "b")), st.sampled_from(("b", "d"))),
    st.tuples(st.just("picture"), st.booleans()),
)


def apply(vault: Path, edit: tuple[Any, ...]) -> None:
    kind, *rest = edit
    if kind == "picture":
        (vault / "pic.png").write_bytes(b"picture") if rest[0] else (vault / "pic.png").unlink(missing_ok=True)
        return
    path = vault / rest[0]
    if kind == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rest[1], encoding="utf-8")
    elif kind == "append" and path.exists():
        path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{rest[1]}", encoding="utf-8")
    elif kind == "delete":
        path.unlink(missing_ok=True)
    elif kind in ("rename", "move folder") and path.exists() and not (vault / rest[1]).exists():
        (vault / rest[1]).parent.mkdir(parents=True, exist_ok=True)
        path.rename(vault / rest[1])


@pytest.mark.timeout(1200)
def test_random_edits_end_as_a_fresh_build(ram_folder: Path, budget: int) -> None:
    @settings(max_examples=5 * budget)
    @given(rounds=st.lists(st.lists(edits, min_size=1, max_size=5), min_size=2, max_size=4))
    @example(rounds=[[("delete", "Flour.md")], [("delete", "Flour.md")]])  # nothing is left
    def check(rounds: list[list[tuple[Any, ...]]]) -> None:
        work = Path(tempfile.mkdtemp(dir=ram_folder))
        vault = work / "vault"
        vault.mkdir()
        apply(vault, ("write", "Flour.md", "# Flour\n\nFor [[Bread]] and tea time."))
        try:
            with open_lake(work / "lake", vault) as lake, open_lake(work / "fresh", vault) as fresh:
                lake.update()
                for some in rounds:
                    for edit in some:
                        apply(vault, edit)
                    lake.update(accept_deletes=True)
                    assert lake.is_current()
                fresh.update()
                assert_same(lake, fresh)
                lake.state.stop_service()
                fresh.state.stop_service()
        finally:
            shutil.rmtree(work)

    check()
