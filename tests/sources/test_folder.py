"""A folder of notes: what is observed, and that it is observed once."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import time
from pathlib import Path

import pytest

from pkm_pipelines.model import ids, keys
from pkm_pipelines.model.errors import SourceError, SourceVanishedError
from pkm_pipelines.sources import detect_flavour
from tests.support.privileges import unprivileged
from tests.support.vaults import Reader, empty, has_changes, note_changes, open_test_source, write_vault


@pytest.fixture
def vault(work: Path) -> Path:
    root = work / "vault"
    root.mkdir()
    return root


def kinds(changes: list) -> list[tuple[str, str]]:
    return [(change.change_type, change.path) for change in changes]


def test_notes_appear_once(vault: Path) -> None:
    write_vault(vault, {"a.md": "one", "b/c.md": "two", "b.md": "three", "b/pic.png": b"\x89"})
    source, reader = open_test_source(vault), Reader()
    changes = reader.read(source)
    assert kinds(changes) == [("INSERT", "a.md"), ("INSERT", "b.md"), ("INSERT", "b/c.md")]
    assert [change.content for change in changes] == [b"one", b"three", b"two"]
    first = changes[0]
    assert first.note_id == ids.note_id("vault", "a.md")
    assert first.content_hash == ids.sha256(b"one")
    assert first.version == 1
    assert first.modified_at == first.changed_at
    assert first.partition_date == dt.datetime.now(dt.UTC).date()
    assert reader.read(source) == []
    assert len(reader.batches) == 1, "a scan without a change yields no batch"


def test_an_edit_is_an_update_and_a_touch_is_nothing(vault: Path) -> None:
    write_vault(vault, {"a.md": "one", "b.md": "two"})
    source, reader = open_test_source(vault), Reader()
    first = reader.read(source)[0]
    (vault / "a.md").write_text("one, edited")
    (vault / "b.md").touch()
    [update] = reader.read(source)
    assert (update.change_type, update.note_id, update.version) == ("UPDATE_AFTER", first.note_id, 2)
    assert update.changed_at > first.changed_at
    assert reader.read(source) == []
    assert not source.has_changes(reader.state) or reader.read_media(source) == []


def test_an_edit_that_keeps_size_and_mtime_is_seen(vault: Path) -> None:
    write_vault(vault, {"a.md": "one"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    stat = (vault / "a.md").stat()
    (vault / "a.md").write_text("two")
    os.utime(vault / "a.md", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    [update] = reader.read(source)
    assert update.content == b"two"
    assert update.changed_at > reader.changes[0].changed_at, "the mtime did not move, the change did"


def test_a_file_read_in_the_tick_of_its_change_is_read_again(vault: Path) -> None:
    write_vault(vault, {"a.md": "one"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    key = keys.note("vault", "a.md")
    # As if it had held other bytes of that size when it was read, a millisecond after it was written.
    ctime = (vault / "a.md").stat().st_ctime_ns
    value = reader.state.values[key].decode()
    read_at = value.split('"read":')[1].split(",")[0]
    value = value.replace(f'"read":{read_at}', f'"read":{ctime + 1_000_000}')
    reader.state.values[key] = value.replace(ids.sha256(b"one"), ids.sha256(b"two")).encode()
    assert kinds(reader.read(source)) == [("UPDATE_AFTER", "a.md")]
    assert reader.read(source) == []


def test_a_delete_is_observed_now(vault: Path) -> None:
    write_vault(vault, {"a.md": "one", "b.md": "two"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    (vault / "a.md").unlink()
    now = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    [delete] = reader.read(source, now=now)
    assert (delete.change_type, delete.path, delete.content, delete.content_hash) == ("DELETE", "a.md", None, None)
    assert delete.changed_at == now
    assert delete.partition_date == now.date()
    assert reader.contents() == {"b.md": b"two"}
    assert reader.read(source) == []


def test_a_note_that_comes_back_is_the_same_note(vault: Path) -> None:
    write_vault(vault, {"a.md": "one", "b.md": "two"})
    source, reader = open_test_source(vault), Reader()
    before = reader.read(source)[0]
    (vault / "a.md").unlink()
    [delete] = reader.read(source)
    write_vault(vault, {"a.md": "one"})
    os.utime(vault / "a.md", (1, 1))
    [insert] = reader.read(source)
    assert (insert.change_type, insert.note_id, insert.version) == ("INSERT", before.note_id, 3)
    assert insert.changed_at > delete.changed_at, "its old mtime must not put it before its own delete"
    assert insert.change_id != before.change_id
    assert reader.contents() == {"a.md": b"one", "b.md": b"two"}


@pytest.mark.parametrize(("old", "new"), [("a.md", "b.md"), ("a.md", "A.md"), ("x/a.md", "y/z/b.md")])
def test_a_rename_keeps_the_note(vault: Path, old: str, new: str) -> None:
    write_vault(vault, {old: "one"})
    source, reader = open_test_source(vault), Reader()
    [before] = reader.read(source)
    (vault / new).parent.mkdir(parents=True, exist_ok=True)
    (vault / old).rename(vault / new)
    [after] = reader.read(source)
    assert (after.change_type, after.path, after.previous_path) == ("UPDATE_AFTER", new, old)
    assert (after.note_id, after.version) == (before.note_id, 2)
    assert after.changed_at > before.changed_at
    assert reader.read(source) == []


def test_a_folder_moves_with_all_its_notes(vault: Path) -> None:
    files = {f"old/{n}.md": f"note {n % 7}" for n in range(40)}
    write_vault(vault, files)
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    before = reader.ids()
    (vault / "old").rename(vault / "new")
    changes = reader.read(source)
    assert len(changes) == 40
    assert all(change.change_type == "UPDATE_AFTER" for change in changes)
    assert reader.ids() == {path.replace("old/", "new/"): note for path, note in before.items()}


def test_a_renamed_note_and_a_new_one_in_its_place(vault: Path) -> None:
    write_vault(vault, {"Untitled.md": "thoughts"})
    source, reader = open_test_source(vault), Reader()
    [first] = reader.read(source)
    (vault / "Untitled.md").rename(vault / "Thoughts.md")
    write_vault(vault, {"Untitled.md": "other"})
    reader.read(source)
    assert reader.ids()["Thoughts.md"] == first.note_id
    assert reader.ids()["Untitled.md"] != first.note_id
    assert reader.contents() == {"Thoughts.md": b"thoughts", "Untitled.md": b"other"}


def test_many_notes_are_born_at_one_path(vault: Path) -> None:
    source, reader = open_test_source(vault), Reader()
    for n in range(30):
        write_vault(vault, {"Untitled.md": ""})
        reader.read(source)
        (vault / "Untitled.md").rename(vault / f"{n:02}.md")
        reader.read(source)
    assert len(set(reader.ids().values())) == 30
    assert len({change.change_id for change in reader.changes}) == 60
    trips = reader.state.round_trips
    write_vault(vault, {"Untitled.md": ""})
    reader.read(source)
    assert reader.state.round_trips - trips < 12, "a birth must not ask for every earlier one"


@pytest.mark.parametrize("folders", [("", ""), ("x/", "y/z/")])
def test_two_notes_swap_names(vault: Path, folders: tuple[str, str]) -> None:
    a, b = f"{folders[0]}a.md", f"{folders[1]}b.md"
    write_vault(vault, {a: "this is a", b: "this is b"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    before = reader.ids()
    (vault / a).rename(vault / "t")
    (vault / b).rename(vault / a)
    (vault / "t").rename(vault / b)
    reader.read(source)
    assert reader.ids() == {a: before[b], b: before[a]}
    assert reader.contents() == {a: b"this is b", b: b"this is a"}
    assert reader.read(source) == []


def test_notes_rotate_across_batches_and_kills(vault: Path) -> None:
    names = [f"{n}.md" for n in range(9)]
    write_vault(vault, {name: f"content of {name}" for name in names})
    source = open_test_source(vault, batch_notes=2)
    reader = Reader()
    reader.read(source)
    before = reader.ids()
    for name in names:
        (vault / name).rename(vault / f"t{name}")
    for old, new in zip(names, [*names[1:], names[0]], strict=True):
        (vault / f"t{old}").rename(vault / new)
    for _ in range(10):
        reader.read(source, stop_after=1)
    assert reader.ids() == {new: before[old] for old, new in zip(names, [*names[1:], names[0]], strict=True)}
    assert reader.contents() == {
        new: f"content of {old}".encode() for old, new in zip(names, [*names[1:], names[0]], strict=True)
    }
    assert not any(":/" in key for key in reader.state.values), "nothing is left parked"


def test_a_note_is_inserted_into_a_numbered_row(vault: Path) -> None:
    write_vault(vault, {"1.md": "one", "2.md": "two"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    before = reader.ids()
    (vault / "2.md").rename(vault / "3.md")
    (vault / "1.md").rename(vault / "2.md")
    write_vault(vault, {"1.md": "zero"})
    reader.read(source)
    assert reader.ids()["3.md"] == before["2.md"]
    assert reader.ids()["2.md"] == before["1.md"]
    assert reader.ids()["1.md"] not in before.values()


def test_a_note_moved_over_another_replaces_it(vault: Path) -> None:
    write_vault(vault, {"a.md": "this is a", "b.md": "this is b"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    before = reader.ids()
    (vault / "b.md").replace(vault / "a.md")
    reader.read(source)
    assert reader.ids() == {"a.md": before["b.md"]}
    assert reader.newest()[before["a.md"]].change_type == "DELETE"
    assert reader.read(source) == []


def test_a_note_saved_through_another_file_is_an_edit(vault: Path) -> None:
    write_vault(vault, {"a.md": "old"})
    source, reader = open_test_source(vault), Reader()
    [first] = reader.read(source)
    write_vault(vault, {".a.md.tmp": "new"})
    (vault / ".a.md.tmp").replace(vault / "a.md")
    [change] = reader.read(source)
    assert (change.change_type, change.note_id) == ("UPDATE_AFTER", first.note_id)


def test_a_copy_is_a_new_note_and_the_edited_one_stays(vault: Path) -> None:
    write_vault(vault, {"a.md": "a note"})
    source, reader = open_test_source(vault), Reader()
    [first] = reader.read(source)
    shutil.copy(vault / "a.md", vault / "a copy.md")
    (vault / "a.md").write_text("a note, edited")
    reader.read(source)
    assert reader.ids()["a.md"] == first.note_id
    assert reader.ids()["a copy.md"] != first.note_id


def test_of_several_candidates_the_most_similar_path_is_the_note(vault: Path) -> None:
    write_vault(vault, {"x/one.md": "same", "x/two.md": "same"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    before = reader.ids()
    content = (vault / "x/one.md").read_bytes()
    shutil.rmtree(vault / "x")
    write_vault(vault, {"y/two.md": content, "y/three.md": content, "y/one.md": content})
    reader.read(source)
    after = reader.ids()
    assert after["y/one.md"] == before["x/one.md"]
    assert after["y/two.md"] == before["x/two.md"]
    assert after["y/three.md"] not in before.values()


def test_a_front_matter_id_is_the_id_and_is_fixed(vault: Path) -> None:
    write_vault(vault, {"a.md": "---\nid: alpha\n---\n", "b.md": "---\nid: 0012\n---\n", "c.md": "no id"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    assert reader.ids() == {"a.md": "alpha", "b.md": "0012", "c.md": ids.note_id("vault", "c.md")}
    write_vault(vault, {"a.md": "---\nid: other\n---\n", "c.md": "---\nid: gamma\n---\n"})
    reader.read(source)
    assert reader.ids() == {"a.md": "alpha", "b.md": "0012", "c.md": ids.note_id("vault", "c.md")}
    assert reader.problems == {}


def test_the_second_claimant_of_an_id_is_listed(vault: Path) -> None:
    write_vault(vault, {"a.md": "---\nid: x\n---\n", "b.md": "---\nid: x\n---\n other"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    assert reader.ids() == {"a.md": "x", "b.md": ids.note_id("vault", "b.md")}
    assert reader.problems == {"b.md": ["duplicate-id"]}
    assert reader.read(source) == []
    write_vault(vault, {"b.md": "---\nid: y\n---\n other"})
    reader.read(source)
    assert reader.problems == {}
    write_vault(vault, {"b.md": "---\nid: x\n---\n again"})
    reader.read(source)
    assert reader.problems == {"b.md": ["duplicate-id"]}


def test_an_id_of_another_source_is_taken(vault: Path, work: Path) -> None:
    write_vault(vault, {"a.md": "---\nid: x\n---\n"})
    reader = Reader()
    reader.read(open_test_source(vault))
    other = write_vault(work / "other", {"b.md": "---\nid: x\n---\n"})
    reader.read(open_test_source(other, name="other"))
    assert reader.ids() == {"a.md": "x", "b.md": ids.note_id("other", "b.md")}
    assert reader.problems == {"b.md": ["duplicate-id"]}


def test_an_unusable_id_is_listed_and_not_used(vault: Path) -> None:
    write_vault(vault, {"a.md": "---\nid: [1, 2]\n---\n", "b.md": "---\nid: {{date}}\n---\n"})
    reader = Reader()
    reader.read(open_test_source(vault))
    assert reader.problems == {"a.md": ["unusable-id"], "b.md": ["unusable-id"]}
    assert reader.ids()["a.md"] == ids.note_id("vault", "a.md")


def test_a_note_that_is_moved_and_edited_is_known_by_its_id(vault: Path) -> None:
    write_vault(vault, {"a.md": "---\nid: x\n---\nold text", "b.md": "b"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    (vault / "a.md").unlink()
    write_vault(vault, {"deep/z.md": "---\nid: x\n---\nquite another text"})
    [change] = reader.read(source)
    assert (change.change_type, change.previous_path, change.note_id) == ("UPDATE_AFTER", "a.md", "x")
    assert reader.problems == {}


def test_a_deleted_id_that_comes_back_elsewhere_is_the_same_note(vault: Path) -> None:
    write_vault(vault, {"a.md": "---\nid: x\n---\n", "b.md": "b"})
    source, reader = open_test_source(vault), Reader()
    [first, _] = reader.read(source)
    (vault / "a.md").unlink()
    reader.read(source)
    write_vault(vault, {"z.md": "---\nid: x\n---\nback"})
    reader.read(source)
    write_vault(vault, {"a.md": "a new one"})
    reader.read(source)
    assert reader.ids()["z.md"] == "x" == first.note_id
    assert reader.newest()["x"].version == 3
    assert reader.contents() == {"a.md": b"a new one", "b.md": b"b", "z.md": b"---\nid: x\n---\nback"}
    assert len(set(reader.ids().values())) == 3


def test_an_mtime_in_the_future_does_not_count(vault: Path) -> None:
    write_vault(vault, {"a.md": "one"})
    os.utime(vault / "a.md", (5_000_000_000, 5_000_000_000))
    source, reader = open_test_source(vault), Reader()
    now = dt.datetime.now(dt.UTC)
    [change] = reader.read(source, now=now)
    assert change.changed_at == now
    assert change.modified_at == dt.datetime.fromtimestamp(5_000_000_000, dt.UTC)
    assert reader.problems == {"a.md": ["future-mtime"]}
    assert [problem.code for problem in change.problems] == ["future-mtime"]
    assert not has_changes(source, reader.state)


def test_times_of_one_note_only_grow(vault: Path) -> None:
    write_vault(vault, {"a.md": "0"})
    source, reader = open_test_source(vault), Reader()
    for n in range(1, 6):
        (vault / "a.md").write_text(str(n) * n)
        os.utime(vault / "a.md", (1_000_000 - n, 1_000_000 - n))
        reader.read(source)
    times = [change.changed_at for change in reader.changes]
    assert times == sorted(set(times))
    assert [change.version for change in reader.changes] == [1, 2, 3, 4, 5]


def test_batches_are_bounded_and_resume(vault: Path) -> None:
    write_vault(vault, {f"{n:03}.md": "x" * (n * 10) for n in range(50)})
    source = open_test_source(vault, batch_notes=7, batch_bytes=2000)
    reader = Reader()
    rounds = 0
    while reader.read(source, stop_after=1):
        rounds += 1
    assert rounds == len(reader.batches)
    for batch in reader.batches:
        assert len(batch.changes) <= 7
        assert sum(len(change.content) for change in note_changes(batch)) <= 2000
    assert len(reader.contents()) == 50
    whole = Reader()
    whole.read(source)
    assert {c.change_id for c in whole.changes} == {c.change_id for c in reader.changes}
    assert whole.batches[-1].done == whole.batches[-1].total == 50


def test_one_large_note_has_a_batch_of_its_own(vault: Path) -> None:
    write_vault(vault, {"a.md": "x", "b.md": "y" * 5000, "c.md": "z"})
    reader = Reader()
    reader.read(open_test_source(vault, batch_bytes=1000))
    assert [len(batch.changes) for batch in reader.batches] == [1, 1, 1]


def test_a_batch_that_was_not_applied_is_noticed(vault: Path) -> None:
    write_vault(vault, {f"{n}.md": "x" for n in range(4)})
    source, reader = open_test_source(vault, batch_notes=2), Reader()
    batches = source.notes(reader.state, dt.datetime.now(dt.UTC))
    next(batches)
    with pytest.raises(SourceError, match="applied"):
        next(batches)


def test_a_kill_between_bronze_and_state_repeats_the_same_changes(vault: Path) -> None:
    write_vault(vault, {f"{n}.md": f"{n}" for n in range(6)})
    source, reader = open_test_source(vault, batch_notes=2), Reader()
    lost = note_changes(next(source.notes(reader.state, dt.datetime.now(dt.UTC))))
    again = reader.read(source, now=dt.datetime.now(dt.UTC) + dt.timedelta(hours=2))
    assert [change.change_id for change in again[:2]] == [change.change_id for change in lost]


def test_a_vanished_root_is_a_question(vault: Path) -> None:
    write_vault(vault, {"a.md": "x"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    shutil.rmtree(vault)
    with pytest.raises(SourceVanishedError, match="--accept-deletes"):
        reader.read(source)
    with pytest.raises(SourceVanishedError):
        reader.read_media(source)
    assert has_changes(source, reader.state)
    assert kinds(reader.read(source, allow_vanish=True)) == [("DELETE", "a.md")]


def test_an_empty_mount_point_is_a_question(vault: Path) -> None:
    write_vault(vault, {"a.md": "x"})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    empty(vault)
    with pytest.raises(SourceVanishedError, match="empty"):
        reader.read(source)
    (vault / ".obsidian").mkdir()
    assert kinds(reader.read(source)) == [("DELETE", "a.md")], "a vault whose last note was deleted"


def test_a_folder_that_never_was_is_an_error(vault: Path) -> None:
    source = open_test_source(vault / "nowhere")
    for verb in (source.notes, source.media):
        with pytest.raises(SourceError, match="nowhere") as caught:
            next(verb(Reader().state, dt.datetime.now(dt.UTC)))
        assert not isinstance(caught.value, SourceVanishedError)
    with pytest.raises(SourceError, match="nowhere"):
        source.has_changes(Reader().state)
    with pytest.raises(SourceError, match="nowhere"):
        source.folders()


@pytest.mark.parametrize(("known", "gone", "asks"), [(9, 8, False), (10, 5, False), (10, 6, True)])
def test_many_deletes_at_once_are_a_question(vault: Path, known: int, gone: int, asks: bool) -> None:
    write_vault(vault, {f"{n}.md": f"{n}" for n in range(known)})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    for n in range(gone):
        (vault / f"{n}.md").unlink()
    if asks:
        with pytest.raises(SourceVanishedError, match="6 of its 10"):
            reader.read(source)
        assert len(reader.contents()) == known
    assert len(reader.read(source, allow_vanish=asks)) == gone


def test_moving_every_note_is_no_question(vault: Path) -> None:
    write_vault(vault, {f"x/{n}.md": f"{n}" for n in range(30)})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    (vault / "x").rename(vault / "y")
    assert len(reader.read(source)) == 30


def test_excluded_notes_are_deleted_and_come_back_as_themselves(vault: Path) -> None:
    write_vault(vault, {"a.md": "a", "Archive/b.md": "b", "Archive/.trash/c.md": "c"})
    reader = Reader()
    reader.read(open_test_source(vault))
    before = reader.ids()
    assert set(before) == {"a.md", "Archive/b.md"}
    assert kinds(reader.read(open_test_source(vault, exclude=["archive"]))) == [("DELETE", "Archive/b.md")]
    reader.read(open_test_source(vault))
    assert reader.ids() == before


def test_include_decides_what_a_note_is(vault: Path) -> None:
    write_vault(vault, {"a.md": "a", "b.txt": "b", "c.markdown": "c", "d.MD": "d"})
    reader = Reader()
    reader.read(open_test_source(vault, include=["**/*.md", "**/*.markdown"]))
    assert sorted(reader.contents()) == ["a.md", "c.markdown", "d.MD"]


def test_the_past_of_a_folder_cannot_be_observed(vault: Path) -> None:
    with pytest.raises(SourceError, match="past"):
        open_test_source(vault).history(Reader().state, dt.date(2024, 1, 1), dt.date(2024, 1, 2))


def test_has_changes_reads_no_contents_and_notices_everything(vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vault(vault, {"a.md": "a", "b.md": "b", "pic.png": b"1"})
    source, reader = open_test_source(vault), Reader()
    assert has_changes(source, reader.state)
    reader.read(source)
    assert has_changes(source, reader.state), "the picture is new"
    reader.read_media(source)
    assert not has_changes(source, reader.state)
    word = source.fingerprint(reader.state)
    with monkeypatch.context() as patched:
        patched.setattr("pkm_pipelines.sources.files.read", None)
        patched.setattr("pkm_pipelines.sources.files.head", None)
        (vault / "a.md").write_text("edited")
        assert has_changes(source, reader.state)
    assert source.fingerprint(reader.state) != word
    reader.read(source)
    (vault / "b.md").unlink()
    assert has_changes(source, reader.state)
    reader.read(source)
    (vault / "pic.png").write_bytes(b"22")
    assert has_changes(source, reader.state)
    reader.read_media(source)
    assert not has_changes(source, reader.state)


def test_a_problem_that_stands_is_no_change(vault: Path) -> None:
    write_vault(vault, {"a.md": b"\xff", "b.sync-conflict-20240131-125959-ABCDEFG.md": "x"})
    (vault / "out.md").symlink_to("/etc/passwd")
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    reader.read_media(source)
    assert not has_changes(source, reader.state)
    count = len(reader.batches)
    reader.read(source)
    assert len(reader.batches) == count


def test_flavours(vault: Path) -> None:
    source = open_test_source(vault)
    assert detect_flavour(source) == "obsidian"
    (vault / "pages").mkdir()
    (vault / "journals").mkdir()
    assert detect_flavour(source) == "logseq"
    (vault / ".obsidian").mkdir()
    assert detect_flavour(source) == "obsidian"
    write_vault(vault, {"logseq/config.edn": "{}", "logseq/bak/pages/a/2024.md": "old", "pages/a.md": "new"})
    assert detect_flavour(source) == "logseq"
    reader = Reader()
    reader.read(source)
    assert list(reader.contents()) == ["pages/a.md"], "Logseq's own backups are no notes"


def test_a_link_that_leads_nowhere_hides_no_flavour(vault: Path) -> None:
    write_vault(vault, {"pages/a.md": "a", "shelf/journals/b.md": "b", "c.md": "c"})
    (vault / "journals").symlink_to("shelf/journals")
    (vault / "loop.md").symlink_to("loop.md")
    (vault / "nowhere").symlink_to("not there")
    (vault / "through").symlink_to("c.md/x")
    (vault / "long").symlink_to("n" * 300)
    source = open_test_source(vault)
    assert source.folders() == {"pages", "journals", "shelf"}
    with unprivileged():
        (vault / "shelf").chmod(0)
        try:
            assert source.folders() == {"pages", "shelf"}
        finally:
            (vault / "shelf").chmod(0o700)


def test_an_unchanged_scan_reads_the_state_once(vault: Path) -> None:
    write_vault(vault, {f"{n % 9}/{n}.md": f"{n}" for n in range(300)})
    source, reader = open_test_source(vault), Reader()
    reader.read(source)
    trips = reader.state.round_trips
    assert trips < 20, "lookups of new notes must be grouped"
    started = time.perf_counter()
    reader.read(source)
    assert time.perf_counter() - started < 1
    assert reader.state.round_trips - trips <= 2


# Media


def read_bytes(change) -> bytes:
    return b"".join(change.open())


def test_media_are_streamed_when_they_are_opened(vault: Path) -> None:
    write_vault(vault, {"a.md": "a", "x/pic.png": b"1" * (3 << 20), "board.canvas": "{}"})
    source, reader = open_test_source(vault), Reader()
    changes = reader.read_media(source)
    assert kinds(changes) == [("INSERT", "board.canvas"), ("INSERT", "x/pic.png")]
    assert read_bytes(changes[0]) == b"{}"
    assert changes[1].open is not None
    chunks = list(changes[1].open())
    assert len(chunks) == 3
    assert changes[1].size_bytes == 3 << 20
    assert changes[1].version == 1
    assert reader.read_media(source) == []


def test_media_change_move_and_go(vault: Path) -> None:
    write_vault(vault, {"a.png": b"1", "b.png": b"2", "c.png": b"3"})
    source, reader = open_test_source(vault), Reader()
    reader.read_media(source)
    (vault / "a.png").write_bytes(b"9")
    (vault / "b.png").rename(vault / "moved.png")
    (vault / "c.png").touch()
    changes = reader.read_media(source)
    assert kinds(changes) == [("UPDATE_AFTER", "a.png"), ("DELETE", "b.png"), ("INSERT", "moved.png")]
    assert changes[1].open is None
    write_vault(vault, {"b.png": b"2"})
    [back] = reader.read_media(source)
    assert (back.change_type, back.version) == ("INSERT", 3)


def test_a_medium_over_the_limit_is_recorded_without_its_bytes(vault: Path) -> None:
    write_vault(vault, {"a.mov": b"1" * 2000})
    source, reader = open_test_source(vault, max_media_bytes=1000), Reader()
    [change] = reader.read_media(source)
    assert (change.open, change.size_bytes) == (None, 2000)
    assert reader.problems == {"a.mov": ["bytes-not-kept"]}
    assert reader.read_media(source) == []
    (vault / "a.mov").write_bytes(b"2" * 2001)
    [change] = reader.read_media(source)
    assert (change.change_type, change.open, change.size_bytes) == ("UPDATE_AFTER", None, 2001)
    (vault / "a.mov").write_bytes(b"2")
    [change] = reader.read_media(source)
    assert read_bytes(change) == b"2"
    assert reader.problems == {}


def test_a_medium_that_is_gone_when_it_is_opened_says_so(vault: Path) -> None:
    write_vault(vault, {"a.png": b"1"})
    [change] = Reader().read_media(open_test_source(vault))
    (vault / "a.png").unlink()
    with pytest.raises(SourceError, match=r"a\.png"):
        read_bytes(change)
