from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.model.globs import Globs


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("**/*.md", "a.md", True),
        ("**/*.md", "x/y/a.md", True),
        ("**/*.md", "x/A.MD", True),
        ("**/*.md", "a.mdx", False),
        ("**/*.md", "a.md/picture.png", False),
        ("*.md", "x/y/a.md", True),
        ("/*.md", "a.md", True),
        ("/*.md", "x/a.md", False),
        ("x/*.md", "x/a.md", True),
        ("x/*.md", "x/y/a.md", False),
        ("x/**", "x/y/a.md", True),
        ("x/**", "x", False),
        ("x/**/a.md", "x/a.md", True),
        ("x/**/a.md", "x/y/z/a.md", True),
        ("x/**/a.md", "xy/a.md", False),
        ("**", "x/y", True),
        ("notes/", "notes/a", True),
        ("notes/", "x/notes/a", True),
        ("?.md", "é.md", True),
        ("?.md", "ab.md", False),
        ("[ab]*.md", "bed.md", True),
        ("[!ab]*.md", "bed.md", False),
        ("[]x].md", "].md", True),
        ("a[.md", "a[.md", True),
        ("a+(b).md", "a+(b).md", True),
        ("e\N{COMBINING ACUTE ACCENT}.md", "é.md", True),
        ("x?y.md", "x/y.md", False),
        ("x[!a]y.md", "x/y.md", False),
        ("line\nbreak.md", "line\nbreak.md", True),
        ("a.md", "a.md\n", False),
    ],
)
def test_a_glob_means_what_gitignore_means(pattern: str, path: str, expected: bool) -> None:
    assert Globs([pattern]).match(path) is expected


@pytest.mark.parametrize(
    ("pattern", "folder", "expected"),
    [
        ("Archive", "Archive", True),
        ("Archive/", "Archive", True),
        ("Archive/**", "Archive", True),
        ("/Archive", "x/Archive", False),
        ("Archive", "x/archive", True),
        ("Archive/*.md", "Archive", False),
        ("**/node_modules/**", "a/b/node_modules", True),
    ],
)
def test_what_is_left_out_is_left_out_with_all_below(pattern: str, folder: str, expected: bool) -> None:
    globs = Globs([pattern], below=True)
    assert globs.covers(folder) is expected
    if expected:
        assert globs.match(f"{folder}/deep/down.md")


def test_no_patterns_mean_nothing() -> None:
    assert not Globs([]).match("a.md")
    assert not Globs([], below=True).covers("a")


@pytest.mark.parametrize("pattern", ["", "/", "./", "[z-a].md"])
def test_a_bad_pattern_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match="glob") as error:
        Globs([pattern])
    assert "position" not in str(error.value)


@given(st.text(alphabet="ab/*?[]!.{}()+^$\\|", min_size=1, max_size=12), st.text(alphabet="ab/.[]\\", max_size=8))
def test_any_text_is_a_pattern_or_a_listed_error(pattern: str, path: str) -> None:
    try:
        globs = Globs([pattern])
    except ValueError:
        return
    globs.match(path)
