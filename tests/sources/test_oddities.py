"""Bad input never stops a scan and is never silent: each odd thing has a row or a listed skip."""

from __future__ import annotations

import os
import socket
import threading
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest

from pkm_pipelines.sources import files, oddities
from tests.support.privileges import unprivileged
from tests.support.vaults import Reader, has_changes, open_test_source, write_vault


@pytest.fixture
def vault(work: Path) -> Path:
    root = work / "vault"
    root.mkdir()
    return root


def scan(vault: Path, **settings: object) -> Reader:
    """Read everything twice; the second time there must be nothing left to say."""
    source, reader = open_test_source(vault, **settings), Reader()
    reader.read(source)
    reader.read_media(source)
    assert not has_changes(source, reader.state)
    count = len(reader.batches)
    reader.read(source)
    reader.read_media(source)
    assert len(reader.batches) == count
    return reader


# Contents


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        (b"", []),
        (b"\xef\xbb\xbfwith a mark", []),
        (b"crlf\r\n", []),
        (b"latin \xe9", ["invalid-utf8"]),
        (b"nul \0", ["nul-bytes"]),
        (b"both \0 \xff", ["invalid-utf8", "nul-bytes"]),
        (b"x" * 5_000_000, []),
    ],
)
def test_any_bytes_are_a_note(vault: Path, content: bytes, codes: list[str]) -> None:
    write_vault(vault, {"a.md": content})
    reader = scan(vault)
    assert reader.contents() == {"a.md": content}
    assert reader.problems == ({"a.md": codes} if codes else {})
    assert [problem.code for problem in reader.changes[0].problems] == codes


def test_a_note_that_is_right_again_is_told(vault: Path) -> None:
    write_vault(vault, {"a.md": b"\xff", "b.md": b"\xff", "c.md": b"\xff c"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    write_vault(vault, {"a.md": b"good"})
    (vault / "b.md").unlink()
    (vault / "c.md").rename(vault / "d.md")
    reader.read(source)
    assert reader.problems == {"d.md": ["invalid-utf8"]}


def test_a_note_over_the_limit_keeps_what_is_known(vault: Path) -> None:
    write_vault(vault, {"a.md": "small", "b.md": "x" * 200})
    source, reader = open_test_source(vault, max_note_bytes=100), Reader()
    reader.read(source)
    assert reader.problems == {"b.md": ["too-large"]}
    write_vault(vault, {"a.md": "y" * 200})
    assert reader.read(source) == []
    assert reader.contents() == {"a.md": b"small"}
    assert reader.problems == {"a.md": ["too-large"], "b.md": ["too-large"]}
    assert not has_changes(source, reader.state)
    write_vault(vault, {"a.md": "small", "b.md": "fits"})
    reader.read(source)
    assert reader.contents() == {"a.md": b"small", "b.md": b"fits"}
    assert reader.problems == {}


# Names


@pytest.mark.parametrize(
    "name",
    [
        "n" * 147 + ".md",
        "é" * 73 + ".md",
        "🗒️ ideas 👩‍👩‍👧.md",
        "日本語のノート.md",
        'a:b?*<>|".md',
        "line\nbreak.md",
        "'; DROP TABLE notes; --.md",
        "100% #tag [[x]] ^y.md",
        "‮backwards.md",
        "back\\slash.md",
        " leading and trailing .md",
        "UPPER.MD",
    ],
)
def test_any_name_is_a_note(vault: Path, name: str) -> None:
    write_vault(vault, {name: "x", f"folder {name}/{name}"[:200] + ".md": "y"})
    reader = scan(vault)
    assert reader.problems == {}
    assert len(reader.contents()) == 2
    assert unicodedata.normalize("NFC", name) in reader.contents()


def test_a_name_that_is_no_text_is_listed(vault: Path) -> None:
    write_vault(vault, {"a.md": "x"})
    (vault / os.fsdecode(b"bad \xff.md")).write_text("x")
    (vault / os.fsdecode(b"bad \xff.png")).write_text("x")
    (vault / os.fsdecode(b"folder \xff")).mkdir()
    (vault / os.fsdecode(b"folder \xff") / "b.md").write_text("x")
    reader = scan(vault)
    assert list(reader.contents()) == ["a.md"]
    assert reader.problems == {
        "bad \\xff.md": ["undecodable-name"],
        "bad \\xff.png": ["undecodable-name"],
        "folder \\xff": ["undecodable-name"],
    }


def test_paths_are_in_normal_form_c(vault: Path) -> None:
    nfd = unicodedata.normalize("NFD", "é.md")
    write_vault(vault, {nfd: "x", unicodedata.normalize("NFD", "ü/ö.md"): "y"})
    assert sorted(scan(vault).contents()) == ["é.md", "ü/ö.md"]


def test_twins_in_unicode_are_kept_apart(vault: Path) -> None:
    nfc, nfd = "é.md", unicodedata.normalize("NFD", "é.md")
    write_vault(vault, {nfd: "decomposed"})
    source, reader = open_test_source(vault), Reader()
    [first] = reader.read(source)
    assert first.path == nfc
    write_vault(vault, {nfc: "composed"})
    if len(list(vault.iterdir())) == 1:
        pytest.skip("this file system holds one of them only")
    reader.read(source)
    assert reader.contents() == {nfc: b"composed", nfd: b"decomposed"}
    assert reader.ids()[nfd] == first.note_id, "the file is the note, whatever its path is called"
    assert reader.problems == {nfd: ["name-twin"]}
    assert not has_changes(source, reader.state)
    (vault / nfc).unlink()
    reader.read(source)
    assert reader.contents() == {nfc: b"decomposed"}
    assert reader.ids() == {nfc: first.note_id}
    assert reader.problems == {}


def test_twin_folders_are_kept_apart(vault: Path) -> None:
    nfc, nfd = "é", unicodedata.normalize("NFD", "é")
    write_vault(vault, {f"{nfc}/a.md": "composed", f"{nfd}/a.md": "decomposed"})
    reader = scan(vault)
    assert reader.contents() == {f"{nfc}/a.md": b"composed", f"{nfd}/a.md": b"decomposed"}
    assert reader.problems == {nfd: ["name-twin"]}


def test_a_note_in_a_twin_folder_can_be_deleted(vault: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "\u00e9t\u00e9") for form in ("NFC", "NFD"))
    write_vault(vault, {f"{nfc}/a.md": "a", f"{nfd}/b.md": "b", f"{nfd}/c.md": "c"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    (vault / nfd / "b.md").unlink()
    assert [(change.change_type, change.path) for change in reader.read(source)] == [("DELETE", f"{nfd}/b.md")]
    assert reader.problems == {nfd: ["name-twin"]}


def test_names_that_differ_in_case_are_two_notes(vault: Path) -> None:
    write_vault(vault, {"Note.md": "a", "note.md": "b", "X/n.md": "c", "x/n.md": "d"})
    if len(list(vault.iterdir())) == 2:
        pytest.skip("this file system ignores case")
    assert len(scan(vault).contents()) == 4


def test_a_folder_may_be_called_like_a_note(vault: Path) -> None:
    write_vault(vault, {"x.md/y.md": "inner", "x.md/pic.png": "1", "x.md.md": "beside"})
    reader = scan(vault)
    assert sorted(reader.contents()) == ["x.md.md", "x.md/y.md"]
    assert [change.path for change in reader.media] == ["x.md/pic.png"]


def test_a_note_that_becomes_a_folder_and_back(vault: Path) -> None:
    write_vault(vault, {"x.md": "note", "y.md": "y"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    (vault / "x.md").unlink()
    write_vault(vault, {"x.md/inner.md": "inner"})
    reader.read(source)
    assert reader.contents() == {"x.md/inner.md": b"inner", "y.md": b"y"}


def test_hidden_names_are_no_content(vault: Path) -> None:
    write_vault(vault, {".hidden.md": "x", ".obsidian/a.md": "x", ".trash/b.md": "x", "a/.git/c.md": "x", "..md": "x"})
    reader = scan(vault)
    assert reader.contents() == {}
    assert reader.problems == {}


def test_paths_sort_as_the_state_sorts_them(vault: Path) -> None:
    names = ["a.md", "a-b.md", "a/b.md", "a!.md", "a/.md.md", "ab.md", "a b.md", "\U0001f600.md", "\uffee.md", "a0.md"]
    write_vault(vault, {name: name for name in names})
    reader = scan(vault)
    visible = [name for name in names if "/." not in name]
    assert [change.path for change in reader.changes] == sorted(visible, key=str.encode)


# Links and what is no file


def test_links_out_of_the_vault_are_never_followed(vault: Path, work: Path) -> None:
    outside = write_vault(work / "outside", {"secret.md": "secret", "deep/secret.md": "secret"})
    (vault / "a.md").symlink_to(outside / "secret.md")
    (vault / "folder").symlink_to(outside)
    (vault / "up.md").symlink_to("../outside/secret.md")
    (vault / "root").symlink_to("/")
    (vault / "parent").symlink_to("..")
    (vault / "hop").symlink_to("folder")
    reader = scan(vault)
    assert reader.changes == []
    assert reader.media == []
    assert reader.problems == {
        path: ["symlink-outside"] for path in ["a.md", "folder", "hop", "parent", "root", "up.md"]
    }


def test_a_sibling_with_the_same_beginning_is_outside(vault: Path, work: Path) -> None:
    write_vault(work / "vault2", {"secret.md": "secret"})
    (vault / "a.md").symlink_to("../vault2/secret.md")
    assert scan(vault).problems == {"a.md": ["symlink-outside"]}


def test_links_inside_are_read_once(vault: Path) -> None:
    write_vault(vault, {"real/a.md": "a", ".hidden/b.md": "b", ".hidden/deep/c.md": "c", ".one.md": "one"})
    (vault / "again").symlink_to("real")
    (vault / "again.md").symlink_to("real/a.md")
    (vault / "shown").symlink_to(".hidden")
    (vault / "shown too").symlink_to(".hidden")
    (vault / "one.md").symlink_to(".one.md")
    (vault / "one again.md").symlink_to(".one.md")
    reader = scan(vault)
    assert reader.contents() == {
        "real/a.md": b"a",
        "shown/b.md": b"b",
        "shown/deep/c.md": b"c",
        "one again.md": b"one",
    }
    assert reader.problems == {path: ["symlink-inside"] for path in ["again", "again.md", "shown too", "one.md"]}


def test_loops_end(vault: Path) -> None:
    write_vault(vault, {"x/a.md": "a", ".h/y/b.md": "b"})
    (vault / "x/loop").symlink_to(".")
    (vault / "x/up").symlink_to("..")
    (vault / "self").symlink_to("self")
    (vault / "ping").symlink_to("pong")
    (vault / "pong").symlink_to("ping")
    (vault / "h").symlink_to(".h")
    (vault / ".h/y/back").symlink_to("..")
    (vault / ".h/z").symlink_to("y")
    reader = scan(vault)
    assert sorted(reader.contents()) == ["h/y/b.md", "x/a.md"]
    assert reader.problems == {
        "x/loop": ["symlink-loop"],
        "x/up": ["symlink-loop"],
        "self": ["symlink-loop"],
        "ping": ["symlink-loop"],
        "pong": ["symlink-loop"],
        "h/y/back": ["symlink-loop"],
        "h/z": ["symlink-inside"],
    }


def test_a_folder_that_leaves_a_link_behind_moves_with_all_its_notes(vault: Path) -> None:
    write_vault(vault, {"projects/a.md": "a", "projects/deep/b.md": "b", "projects/p.png": "1", "archive/c.md": "c"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    reader.read_media(source)
    before = reader.ids()
    (vault / "projects").rename(vault / "archive/projects")
    (vault / "projects").symlink_to("archive/projects")
    moved = {(change.change_type, change.previous_path, change.path) for change in reader.read(source)}
    assert moved == {("UPDATE_AFTER", path, f"archive/{path}") for path in ("projects/a.md", "projects/deep/b.md")}
    assert reader.ids() == {path if path == "archive/c.md" else f"archive/{path}": i for path, i in before.items()}
    media = [(change.change_type, change.path) for change in reader.read_media(source)]
    assert media == [("INSERT", "archive/projects/p.png"), ("DELETE", "projects/p.png")]
    assert reader.problems == {"projects": ["symlink-inside"]}
    assert not has_changes(source, reader.state)


@pytest.mark.parametrize("batch_notes", [1, 1000])
def test_a_note_that_leaves_a_link_behind_moves(vault: Path, batch_notes: int) -> None:
    write_vault(vault, {"m.md": "this is not odd", "z.md": b"\xff is odd", "other.md": "other"})
    source, reader = open_test_source(vault, batch_notes=batch_notes), Reader()
    reader.read(source)
    before = reader.ids()
    for old, new in (("m.md", "a.md"), ("z.md", "b.md")):
        (vault / old).rename(vault / new)
        (vault / old).symlink_to(new)
    reader.read(source)
    assert reader.ids() == {"a.md": before["m.md"], "b.md": before["z.md"], "other.md": before["other.md"]}
    links = {"m.md": ["symlink-inside"], "z.md": ["symlink-inside"]}
    assert reader.problems == {"b.md": ["invalid-utf8"], **links}
    assert not has_changes(source, reader.state)
    # And back: the links go, the notes are where they were.
    for old, new in (("m.md", "a.md"), ("z.md", "b.md")):
        (vault / new).replace(vault / old)
    reader.read(source)
    assert reader.ids() == before
    assert reader.problems == {"z.md": ["invalid-utf8"]}
    assert not has_changes(source, reader.state)


def test_a_file_that_becomes_a_link_to_another_one_is_gone(vault: Path) -> None:
    write_vault(vault, {"a.md": "a", "b.md": "b", "p.png": "1", "q.png": "2"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    reader.read_media(source)
    before = reader.ids()
    for path, target in (("a.md", "b.md"), ("p.png", "q.png")):
        (vault / path).unlink()
        (vault / path).symlink_to(target)
    assert [(change.change_type, change.path) for change in reader.read(source)] == [("DELETE", "a.md")]
    assert [(change.change_type, change.path) for change in reader.read_media(source)] == [("DELETE", "p.png")]
    assert reader.problems == {"a.md": ["symlink-inside"], "p.png": ["symlink-inside"]}
    assert not has_changes(source, reader.state)
    for path, content in (("a.md", "a"), ("p.png", "1")):
        (vault / path).unlink()
        write_vault(vault, {path: content})
    reader.read(source)
    assert [(change.change_type, change.version) for change in reader.read_media(source)] == [("INSERT", 3)]
    assert reader.ids() == before
    assert reader.problems == {}
    assert not has_changes(source, reader.state)


def test_a_note_that_was_hidden_by_a_link_is_found_to_be_gone(vault: Path) -> None:
    """A link out of the source keeps what is known; turned to where a note is read anyway, it keeps nothing."""
    write_vault(vault, {"a.md": "a", "b.md": "b"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    (vault / "a.md").unlink()
    (vault / "a.md").symlink_to("/etc/hostname")
    assert reader.read(source) == []
    (vault / "a.md").unlink()
    (vault / "a.md").symlink_to("b.md")
    assert [(change.change_type, change.path) for change in reader.read(source)] == [("DELETE", "a.md")]
    assert reader.problems == {"a.md": ["symlink-inside"]}
    assert not has_changes(source, reader.state)


def test_a_broken_link_is_listed(vault: Path) -> None:
    (vault / "a.md").symlink_to("nowhere")
    assert scan(vault).problems == {"a.md": ["symlink-broken"]}


def test_the_root_may_be_a_link(vault: Path, work: Path) -> None:
    write_vault(vault, {"a.md": "a"})
    (work / "link").symlink_to(vault)
    assert scan(work / "link").contents() == {"a.md": b"a"}


def test_a_note_swapped_for_a_link_is_not_followed(vault: Path, work: Path) -> None:
    write_vault(work, {"secret.md": "secret"})
    (vault / "a.md").symlink_to(work / "secret.md")
    with pytest.raises(OSError, match="symbolic"):
        files.read(str(vault / "a.md"), max_bytes=100)
    with pytest.raises(OSError, match="symbolic"):
        files.head(str(vault / "a.md"), 10)


def test_pipes_and_sockets_are_listed_and_not_opened(vault: Path) -> None:
    os.mkfifo(vault / "pipe.md")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(vault / "s.md"))
        reader = scan(vault)
    assert reader.problems == {"pipe.md": ["not-a-file"], "s.md": ["not-a-file"]}
    with pytest.raises(OSError, match="regular"):
        files.read(str(vault / "pipe.md"), max_bytes=100)


# What cannot be read (now)


def deny(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file or folder unreadable, for root too, whom no mode stops."""
    real_open, real_scandir = os.open, os.scandir

    def open_(target: str, *rest: int) -> int:
        if Path(target) == path:
            raise PermissionError(13, "Permission denied", target)
        return real_open(target, *rest)

    def scandir(target: str):
        if Path(target) == path:
            raise PermissionError(13, "Permission denied", target)
        return real_scandir(target)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "scandir", scandir)


def test_an_unreadable_note_is_listed_and_not_deleted(vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vault(vault, {"a.md": "a", "b.md": "b"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    (vault / "a.md").write_text("edited")
    with monkeypatch.context() as patched:
        deny(vault / "a.md", patched)
        assert reader.read(source) == []
        assert reader.problems == {"a.md": ["unreadable"]}
        assert not has_changes(source, reader.state), "it looks as it did when reading it failed"
        count = len(reader.batches)
        reader.read(source)
        assert len(reader.batches) == count
    assert [change.content for change in reader.read(source)] == [b"edited"]
    assert reader.problems == {}


def test_a_new_unreadable_note_is_read_once_it_can_be(vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vault(vault, {"a.md": "a", "p.png": "1"})
    source, reader = open_test_source(vault), Reader()
    with monkeypatch.context() as patched:
        deny(vault / "a.md", patched)
        reader.read(source)
        assert reader.changes == []
    with monkeypatch.context() as patched:
        deny(vault / "p.png", patched)
        assert reader.read_media(source) == []
    assert reader.problems == {"a.md": ["unreadable"], "p.png": ["unreadable"]}
    reader.read(source)
    reader.read_media(source)
    assert reader.contents() == {"a.md": b"a"}
    assert len(reader.media) == 1
    assert reader.problems == {}


def test_an_unreadable_folder_is_listed_and_nothing_below_it_is_deleted(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vault(vault, {"x/a.md": "a", "x/y/b.md": "b", "x.md": "c", "xy/d.md": "d", "x/pic.png": "1"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    reader.read_media(source)
    with monkeypatch.context() as patched:
        deny(vault / "x", patched)
        (vault / "xy/d.md").unlink()
        assert [change.path for change in reader.read(source)] == ["xy/d.md"]
        assert reader.problems == {"x/": ["unreadable"]}
        assert reader.read_media(source) == []
        assert not has_changes(source, reader.state)
    reader.read(source)
    assert reader.problems == {}
    assert sorted(reader.contents()) == ["x.md", "x/a.md", "x/y/b.md"]


def test_modes_are_respected(vault: Path) -> None:
    write_vault(vault, {"a.md": "a", "x/b.md": "b"})
    (vault / "c.md").symlink_to("x/b.md")
    (vault / "a.md").chmod(0)
    (vault / "x").chmod(0)
    try:
        with unprivileged():
            assert scan(vault).problems == {path: ["unreadable"] for path in ("a.md", "c.md", "x/")}
    finally:
        (vault / "x").chmod(0o700)


def test_a_note_that_keeps_changing_is_listed_and_read_later(vault: Path) -> None:
    write_vault(vault, {"a.md": "a", "b.md": "b"})
    source, reader = open_test_source(vault), Reader()
    stop, started = threading.Event(), threading.Event()

    def write() -> None:
        with (vault / "a.md").open("a") as file:
            while not stop.is_set():
                file.write("x")
                file.flush()
                started.set()
                time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        started.wait(5)
        reader.read(source)
    finally:
        stop.set()
        thread.join()
    assert reader.contents() == {"b.md": b"b"}
    assert reader.problems == {"a.md": ["changing"]}
    reader.read(source)
    assert reader.contents()["a.md"] == (vault / "a.md").read_bytes()
    assert reader.problems == {}


def test_a_note_that_goes_between_listing_and_reading_is_nothing(vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vault(vault, {"a.md": "a", "b.md": "b"})
    source, reader = open_test_source(vault), Reader()
    real = files.read

    def read(path: str, **options: object):
        (vault / "a.md").unlink(missing_ok=True)
        return real(path, **options)

    monkeypatch.setattr(files, "read", read)
    reader.read(source)
    assert reader.contents() == {"b.md": b"b"}
    assert reader.problems == {}


# Sync tools


@pytest.mark.parametrize(
    "name",
    [
        "a.sync-conflict-20240131-125959-ABCDEFG.md",
        "a (Ann's conflicted copy 2024-01-31).md",
        "a (conflicted copy 2024-01-31 125959).md",
        "a (conflicted copy 2024-01-31 125959) (1).md",
        "a (Conflicted copy Laptop 202401311259).md",
        "a (Case Conflict).md",
        "a_conflict-20240131-125959.md",
        "a (SFConflict ann@example.com 2024-01-31-12-59-59).md",
        "a (Ann's conflicted copy 2024-01-31).excalidraw.md",
    ],
)
def test_conflict_copies_are_listed_and_are_no_notes(vault: Path, name: str) -> None:
    write_vault(vault, {"a.md": "a", name: "b", name.replace(".md", ".png"): "c"})
    reader = scan(vault)
    assert reader.contents() == {"a.md": b"a"}
    assert reader.media == []
    assert reader.problems == {name: ["conflict-copy"], name.replace(".md", ".png"): ["conflict-copy"]}


@pytest.mark.parametrize(
    "name", ["Conflict.md", "a conflict of laws.md", "On conflicted copies.md", "sync-conflict.md", "a (conflict).md"]
)
def test_notes_about_conflicts_are_notes(vault: Path, name: str) -> None:
    write_vault(vault, {name: "x"})
    assert list(scan(vault).contents()) == [name]


@pytest.mark.parametrize(("placeholder", "size"), [(".a.md.icloud", 150), ("a.md.nextcloud", 1), ("a.md.owncloud", 1)])
def test_a_placeholder_is_no_delete(vault: Path, placeholder: str, size: int) -> None:
    write_vault(vault, {"a.md": "a", "b.md": "b"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    (vault / "a.md").rename(vault / "saved")
    write_vault(vault, {placeholder: "p" * size})
    assert reader.read(source) == []
    assert reader.problems == {"a.md": ["placeholder"]}
    assert reader.contents() == {"a.md": b"a", "b.md": b"b"}
    (vault / placeholder).unlink()
    (vault / "saved").rename(vault / "a.md")
    assert reader.read(source) == []
    assert reader.problems == {}


def test_a_file_beside_its_placeholder_counts(vault: Path) -> None:
    write_vault(vault, {"a.md": "a", ".a.md.icloud": "p"})
    reader = scan(vault)
    assert reader.contents() == {"a.md": b"a"}
    assert reader.problems == {}


@pytest.mark.parametrize(
    ("attributes", "offline"),
    [
        ({}, False),
        ({"st_flags": 0x40000000}, True),
        ({"st_flags": 0x20}, False),
        ({"st_file_attributes": 0x1000}, True),
        ({"st_file_attributes": 0x400000}, True),
        ({"st_file_attributes": 0x20}, False),
    ],
)
def test_offline_files_are_recognised_by_their_attributes(attributes: dict[str, int], offline: bool) -> None:
    assert oddities.is_offline(SimpleNamespace(**attributes)) is offline  # type: ignore[arg-type]


def test_every_code_has_a_message_and_a_row_in_the_documentation() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    for code in oddities.MESSAGES:
        assert f"`{code}`" in text, f"docs/sources.md does not say what {code} means"
        assert oddities.message(code, "x")
