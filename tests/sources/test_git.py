"""A git repository of notes: its newest state, its commits since, and its past."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pygit2
import pytest

from pkm_pipelines.model import ids, keys
from pkm_pipelines.model.errors import SourceError, SourceVanishedError
from pkm_pipelines.sources import detect_flavour
from tests.support.vaults import DAY_ONE, History, Reader, has_changes, open_test_source

ALL = (dt.date(1970, 1, 1), dt.date(2100, 1, 1))
LONG = "\n".join(f"line {n} of a note that is long enough to be compared" for n in range(30))


@pytest.fixture
def git(work: Path) -> History:
    return History(work / "notes.git")


def source_of(git: History, **settings: object):
    return open_test_source(git.path, kind="git", **settings)


def story(changes) -> list[tuple[str, str, str | None]]:
    return [(change.change_type, change.path, change.previous_path) for change in changes]


def test_the_first_time_it_is_the_newest_state(git: History) -> None:
    git.commit({"a.md": "one", "b.md": "b"})
    second = git.commit({"a.md": "two", "b.md": "b"})
    source, reader = source_of(git), Reader()
    changes = reader.read(source)
    assert story(changes) == [("UPDATE_AFTER", "a.md", None), ("INSERT", "b.md", None)]
    a, b = changes
    assert (a.content, a.commit_id, a.ordinal, a.author, a.version) == (b"two", second, 1, "Ann Author", None)
    assert (b.content, b.ordinal) == (b"b", 0)
    assert a.changed_at == DAY_ONE + dt.timedelta(hours=2) == a.modified_at
    assert a.partition_date == DAY_ONE.date()
    assert a.note_id == ids.note_id("vault", "a.md")
    assert "@" not in str(a), "no address of an author travels"
    assert reader.read(source) == []
    reader.read_media(source)
    assert not has_changes(source, reader.state)


def test_later_it_is_every_commit_since(git: History) -> None:
    git.commit({"a.md": "1"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    git.commit({"a.md": "2"})
    git.commit({"a.md": "3", "b.md": "b"})
    git.commit({"b.md": "b"})
    assert has_changes(source, reader.state)
    assert story(reader.read(source)) == [
        ("UPDATE_AFTER", "a.md", None),
        ("UPDATE_AFTER", "a.md", None),
        ("INSERT", "b.md", None),
        ("DELETE", "a.md", None),
    ]
    assert reader.contents() == {"b.md": b"b"}


def test_the_work_tree_is_never_read(work: Path) -> None:
    repository = pygit2.init_repository(str(work / "wt"), initial_head="main")
    (work / "wt/a.md").write_text("committed")
    repository.index.add("a.md")
    who = pygit2.Signature("A", "a@b", 1_700_000_000, 0)
    repository.create_commit("HEAD", who, who, "m", repository.index.write_tree(), [])
    (work / "wt/a.md").write_text("not committed")
    (work / "wt/b.md").write_text("not committed")
    for path in (work / "wt", work / "wt/.git"):
        reader = Reader()
        reader.read(open_test_source(path, kind="git"))
        assert reader.contents() == {"a.md": b"committed"}


def test_a_history_is_told_by_days_in_any_order(git: History) -> None:
    trees = [{"a.md": f"{n}", **({"b.md": "b"} if n != 3 else {})} for n in range(6)]
    for n, tree in enumerate(trees):
        git.commit(tree, at=DAY_ONE + dt.timedelta(days=n, hours=n))
    source, whole = source_of(git), Reader()
    whole.backfill(source, *ALL)
    truth = {(change.change_id, change.changed_at, change.note_id) for change in whole.changes}
    assert len(truth) == 9
    days = [(DAY_ONE + dt.timedelta(days=n)).date() for n in range(6)]
    for order in itertools.islice(itertools.permutations(days), 0, 720, 97):
        reader = Reader()
        for day in order:
            for change in reader.backfill(source, day, day):
                assert change.partition_date == day or (change.change_type == "DELETE" and change.partition_date > day)
        assert {(change.change_id, change.changed_at, change.note_id) for change in reader.changes} == truth
    head = Reader()
    head.read(source)
    assert {(change.change_id, change.changed_at, change.note_id) for change in head.changes} < truth


def test_history_writes_nothing_but_the_index(git: History) -> None:
    for n in range(5):
        git.commit({f"{n}.md": f"{n}"})
    source, reader = source_of(git), Reader()
    assert len(reader.backfill(source, *ALL)) == 9
    index_written = dict(reader.state.values)
    reader.backfill(source, *ALL)
    assert reader.state.values == index_written
    assert all(not batch.mutations for batch in reader.batches if batch.changes)
    assert len(reader.read(source)) == 0, "the newest state is in bronze already"
    assert reader.contents() == {"4.md": b"4"}


def test_days_without_commits_are_empty(git: History) -> None:
    git.commit({"a.md": "1"})
    reader = Reader()
    assert reader.backfill(source_of(git), dt.date(2020, 1, 1), dt.date(2020, 12, 31)) == []
    assert reader.backfill(source_of(git), dt.date(2030, 1, 1), dt.date(2030, 12, 31)) == []
    assert reader.backfill(source_of(git), dt.date(2030, 1, 1), dt.date(2020, 1, 1)) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a.md": "x"}, {"b.md": "x"}),
        ({"a.md": LONG}, {"deep/b.md": LONG + "\nand one more line"}),
        ({"a.md": "---\nid: x\n---\nshort"}, {"b.md": "---\nid: x\n---\n" + LONG}),
        ({"a.md": "x", "c.md": "c"}, {"A.md": "x", "c.md": "c"}),
    ],
    ids=["equal", "similar", "stated-id", "case"],
)
def test_a_rename_keeps_the_note(git: History, before: dict[str, str], after: dict[str, str]) -> None:
    git.commit(before)
    source, reader = source_of(git), Reader()
    [first, *_] = reader.read(source)
    git.commit(after)
    [rename] = reader.read(source)
    assert rename.change_type == "UPDATE_AFTER"
    assert (rename.note_id, rename.previous_path) == (first.note_id, "a.md")
    assert set(reader.contents()) == set(after)


def test_unlike_notes_are_two(git: History) -> None:
    git.commit({"a.md": LONG})
    git.commit({"b.md": "something else"})
    reader = Reader()
    assert story(reader.backfill(source_of(git), *ALL))[1:] == [("DELETE", "a.md", None), ("INSERT", "b.md", None)]


def test_a_folder_of_many_notes_moves(git: History) -> None:
    git.commit({f"old/{n}.md": f"note {n // 2}" for n in range(1500)})
    source, reader = source_of(git), Reader()
    reader.read(source)
    before = reader.ids()
    git.commit({f"new/{n}.md": f"note {n // 2}" for n in range(1500)})
    reader.read(source)
    assert reader.ids() == {path.replace("old", "new"): note for path, note in before.items()}


def test_swaps_chains_and_reuse_of_paths(git: History) -> None:
    git.commit({"a.md": "aa", "b.md": "bb", "c.md": "cc"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    before = reader.ids()
    git.commit({"b.md": "aa", "c.md": "cc", "d.md": "bb"})
    git.commit({"a.md": "new", "b.md": "aa", "c.md": "cc", "d.md": "bb"})
    reader.read(source)
    after = reader.ids()
    assert reader.contents() == {"a.md": b"new", "b.md": b"aa", "c.md": b"cc", "d.md": b"bb"}
    assert len(set(after.values())) == 4
    assert after["a.md"] not in (before["b.md"], before["c.md"])


def test_a_note_that_comes_back_is_the_same_note(git: History) -> None:
    git.commit({"a.md": "a", "b.md": "b"})
    git.commit({"b.md": "b"})
    git.commit({"a.md": "again", "b.md": "b"})
    reader = Reader()
    changes = reader.backfill(source_of(git), *ALL)
    of_a = [change for change in changes if change.path == "a.md"]
    assert [change.change_type for change in of_a] == ["INSERT", "DELETE", "INSERT"]
    assert len({change.note_id for change in of_a}) == 1
    assert of_a[1].content is None
    assert of_a[1].content_hash is None


def test_front_matter_ids_and_their_second_claimants(git: History) -> None:
    git.commit({"a.md": "---\nid: x\n---\n", "b.md": "---\nid: x\n---\n b", "c.md": "---\nid: [1]\n---\n"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    assert reader.ids() == {"a.md": "x", "b.md": ids.note_id("vault", "b.md"), "c.md": ids.note_id("vault", "c.md")}
    assert reader.problems == {"b.md": ["duplicate-id"], "c.md": ["unusable-id"]}
    git.commit({"a.md": "---\nid: x\n---\n", "b.md": "---\nid: x\n---\n b edited", "c.md": "no id"})
    reader.read(source)
    assert reader.problems["b.md"] == ["duplicate-id"]


def test_times_are_monotone_along_the_chain(git: History) -> None:
    for n, minutes in enumerate([0, -600, -600, 5]):
        git.commit({"a.md": f"{n}"}, at=DAY_ONE + dt.timedelta(minutes=minutes))
    changes = Reader().backfill(source_of(git), *ALL)
    times = [change.changed_at for change in changes]
    tick = dt.timedelta(microseconds=1)
    assert times == [DAY_ONE, DAY_ONE + tick, DAY_ONE + 2 * tick, DAY_ONE + dt.timedelta(minutes=5)]
    assert [change.ordinal for change in changes] == [0, 1, 2, 3]
    assert changes[1].modified_at == DAY_ONE - dt.timedelta(minutes=600), "the author's time is as it was"


def test_a_commit_of_the_future_counts_as_now(git: History) -> None:
    git.commit({"a.md": "1"}, at=dt.datetime(2091, 1, 1, tzinfo=dt.UTC))
    git.commit({"a.md": "2"}, at=DAY_ONE)
    source, reader = source_of(git), Reader()
    now = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)
    [change] = reader.read(source, now=now)
    assert change.changed_at == now + dt.timedelta(microseconds=1)
    assert reader.problems == {".": ["future-commit"]}
    git.commit({"a.md": "3"}, at=now + dt.timedelta(days=1))
    reader.read(source, now=dt.datetime(2092, 1, 1, tzinfo=dt.UTC))
    assert reader.problems == {}
    assert reader.contents() == {"a.md": b"3"}


def test_merges_count_by_their_first_parent(git: History) -> None:
    base = git.commit({"a.md": "a"})
    main = git.commit({"a.md": "a", "m.md": "m"})
    side = git.commit({"a.md": "a", "s1.md": "s"}, parents=[base], branch=None)
    side = git.commit({"a.md": "a", "s1.md": "s", "s2.md": "s2"}, parents=[side], branch=None)
    merge = git.commit({"a.md": "merged", "m.md": "m", "s1.md": "s", "s2.md": "s2"}, parents=[main, side])
    reader = Reader()
    changes = reader.backfill(source_of(git), *ALL)
    assert {change.path for change in changes if change.commit_id == merge} == {"a.md", "s1.md", "s2.md"}
    assert max(change.ordinal for change in changes) == 2


def test_branches_tags_and_their_absence(git: History) -> None:
    git.commit({"a.md": "a"})
    first = git.commit({"a.md": "on dev"}, branch="dev", parents=[])
    git.repository.references.create("refs/tags/v1", first)
    git.repository.references.create("refs/remotes/origin/far", first)
    for branch, content in (("main", b"a"), ("dev", b"on dev"), ("v1", b"on dev"), ("far", b"on dev"), (None, b"a")):
        reader = Reader()
        reader.read(source_of(git, branch=branch))
        assert reader.contents() == {"a.md": content}
    with pytest.raises(SourceError, match="dev, main, origin/far"):
        Reader().read(source_of(git, branch="nope"))
    git.repository.set_head("refs/heads/gone")
    with pytest.raises(SourceError, match="HEAD is no commit; set `branch`"):
        Reader().read(source_of(git))


def test_an_annotated_tag_is_a_branch_too(git: History) -> None:
    commit = git.commit({"a.md": "a"})
    who = pygit2.Signature("A", "a@b", 1, 0)
    git.repository.create_tag("v1", pygit2.Oid(hex=commit), pygit2.enums.ObjectType.COMMIT, who, "m")
    reader = Reader()
    reader.read(source_of(git, branch="v1"))
    assert reader.contents() == {"a.md": b"a"}


def test_a_repository_without_commits_is_empty(git: History) -> None:
    source, reader = source_of(git), Reader()
    assert reader.read(source) == []
    assert reader.read_media(source) == []
    assert not has_changes(source, reader.state)
    assert source.folders() == set()
    git.commit({"a.md": "a"})
    assert has_changes(source, reader.state)
    assert len(reader.read(source)) == 1


@pytest.mark.parametrize("what", ["nothing", "folder", "file"])
def test_what_is_no_repository_is_an_error(work: Path, what: str) -> None:
    path = work / "place"
    if what == "folder":
        path.mkdir()
    if what == "file":
        path.write_text("x")
    with pytest.raises(SourceError, match="not a git repository"):
        Reader().read(open_test_source(path, kind="git"))


def test_a_subfolder_is_a_vault_of_its_own(git: History) -> None:
    git.commit({"a.md": "outside", "x/vault/b.md": "b", "x/vault/.obsidian/c.md": "c"})
    git.commit({"a.md": "outside", "x/vault/c/d.md": "b", "x/vault/moved.md": "outside"})
    source, reader = source_of(git, subfolder="x/vault/"), Reader()
    reader.read(source)
    assert reader.contents() == {"c/d.md": b"b", "moved.md": b"outside"}
    assert source.folders() == {"c"}
    with pytest.raises(SourceError, match="no folder 'nope'"):
        Reader().read(source_of(git, subfolder="nope"))
    git.commit({"a.md": "outside"})
    with pytest.raises(SourceVanishedError, match="--accept-deletes"):
        reader.read(source)
    assert len(reader.contents()) == 2
    reader.read(source, allow_vanish=True)
    assert reader.contents() == {}


def test_a_subfolder_that_comes_late_begins_then(git: History) -> None:
    git.commit({"a.md": "a"})
    git.commit({"v/b.md": "b"})
    changes = Reader().backfill(source_of(git, subfolder="v"), *ALL)
    assert story(changes) == [("INSERT", "b.md", None)]
    assert changes[0].ordinal == 1


def test_flavour_is_told_from_the_tip(git: History) -> None:
    git.commit({"pages/a.md": "a", "journals/b.md": "b", "logseq/bak/x.md": "old"})
    source, reader = source_of(git), Reader()
    assert detect_flavour(source) == "logseq"
    reader.read(source)
    assert sorted(reader.contents()) == ["journals/b.md", "pages/a.md"]


def test_the_watched_folder_is_the_repositorys(git: History) -> None:
    git.commit({"a.md": "a"})
    assert source_of(git).watched.samefile(git.path)


# Batches and kills


def test_a_kill_after_any_batch_ends_in_the_same_state(git: History) -> None:
    tree = {"stays.md": "s"}
    for n in range(30):
        tree = {**tree, f"{n % 7}-{n // 10}.md": f"{n}", f"{(n + 1) % 5}.md": LONG[: n * 9]}
        git.commit(tree)
    source, reader = source_of(git, batch_notes=3, batch_bytes=500), Reader()
    rounds = 0
    while True:
        before = len(reader.batches)
        reader.read(source, stop_after=1)
        if len(reader.batches) == before:
            break
        rounds += 1
        if rounds % 4 == 0 and rounds < 40:
            git.commit(tree := {**tree, f"new {rounds % 3}.md": f"{rounds}"})
    assert rounds > 5
    fresh = Reader()
    fresh.read(source)
    assert reader.contents() == fresh.contents()
    assert reader.ids() == fresh.ids()
    for batch in reader.batches:
        assert len(batch.changes) <= 3
    reader.backfill(source, *ALL)
    fresh.backfill(source, *ALL)
    assert {c.change_id for c in reader.changes} == {c.change_id for c in fresh.changes}


def test_a_large_commit_is_told_in_batches(git: History) -> None:
    git.commit({"a.md": "a"})
    source, reader = source_of(git, batch_notes=10), Reader()
    reader.read(source)
    git.commit({f"{n}.md": f"{n}" for n in range(35)})
    count = 0
    while changes := reader.read(source, stop_after=1) or (count == 0 and ["index"]):
        count += 1
        assert len(changes) <= 10
    assert len(reader.contents()) == 35


def test_lookups_are_grouped(git: History) -> None:
    for n in range(100):
        git.commit({f"{m}.md": f"{n}" for m in range(n, n + 5)})
    source, reader = source_of(git), Reader()
    reader.read(source)
    assert reader.state.round_trips < 60


# Resets


def test_an_amended_commit_is_replaced(git: History) -> None:
    base = git.commit({"a.md": "a", "b.md": "b"})
    git.commit({"a.md": "wrong", "b.md": "b", "typo.md": "t"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    git.commit({"a.md": "right", "b.md": "b"}, parents=[base])
    changes = reader.read(source)
    assert reader.contents() == {"a.md": b"right", "b.md": b"b"}
    assert ("DELETE", "typo.md", None) in story(changes)
    assert reader.read(source) == []
    reader.read_media(source)
    assert not has_changes(source, reader.state)


def test_a_branch_that_is_set_back_takes_its_notes_back(git: History) -> None:
    first = git.commit({"a.md": "a", "b.md": "b"})
    git.commit({"a.md": "edited", "c.md": "c", "b.md": "b"})
    third = git.commit({"moved.md": "edited", "c.md": "c"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    reader.backfill(source, *ALL)
    git.move(first)
    reader.read(source)
    assert reader.contents() == {"a.md": b"a", "b.md": b"b"}
    git.move(third)
    reader.read(source)
    assert reader.contents() == {"moved.md": b"edited", "c.md": b"c"}, "commits that come back count again"
    git.move(first)
    reader.read(source)
    assert reader.contents() == {"a.md": b"a", "b.md": b"b"}
    git.commit({"a.md": "next", "b.md": "b"}, at=DAY_ONE)
    reader.read(source)
    assert reader.contents() == {"a.md": b"next", "b.md": b"b"}, "also with an old committer's time"


def test_a_history_that_was_rewritten_whole(git: History) -> None:
    git.commit({"a.md": "a", "b.md": "b"})
    git.commit({"a.md": "a2", "b.md": "b"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    git.commit({"a.md": "a", "c.md": "c"}, parents=[], at=DAY_ONE - dt.timedelta(days=400))
    git.commit({"a.md": "a", "c.md": "c2"}, at=DAY_ONE - dt.timedelta(days=399))
    reader.read(source)
    assert reader.contents() == {"a.md": b"a", "c.md": b"c2"}
    days = {c.partition_date for c in Reader().backfill(source, *ALL)}
    assert days == {(DAY_ONE - dt.timedelta(days=n)).date() for n in (400, 399)}, "its commits keep their own days"


def test_after_a_reset_the_index_is_what_a_fresh_one_is(git: History) -> None:
    first = git.commit({"a.md": "a", "---.md": "---\nid: x\n---\n"})
    git.commit({"b.md": "a", "a.md": "new"})
    git.commit({"b.md": "a", "z.md": "---\nid: x\n---\n back"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    git.move(first)
    git.commit({"a.md": "a", "---.md": "---\nid: x\n---\n more", "b.md": "fresh"})
    reader.read(source)
    fresh = Reader()
    fresh.read(source)

    def index(state) -> dict[str, object]:
        return {
            key: {name: part for name, part in json.loads(value).items() if name != "changed"}
            for prefix in (keys.NOTE, keys.IDENTITY)
            for key, value in state.scan(prefix)
        }

    assert index(reader.state) == index(fresh.state)
    assert not list(reader.state.scan(keys.CORRECTION))


def test_another_branch_in_the_settings_is_a_reset(git: History) -> None:
    base = git.commit({"a.md": "a", "b.md": "b"})
    git.commit({"a.md": "main", "b.md": "b"})
    git.commit({"a.md": "dev", "c.md": "c"}, parents=[base], branch="dev")
    reader = Reader()
    reader.read(source_of(git))
    reader.read(source_of(git, branch="dev"))
    assert reader.contents() == {"a.md": b"dev", "c.md": b"c"}
    reader.read(source_of(git))
    assert reader.contents() == {"a.md": b"main", "b.md": b"b"}


def test_other_globs_make_another_index(git: History) -> None:
    git.commit({"a.md": "a", "b.txt": "b", "x/c.md": "c"})
    git.commit({"a.md": "a2", "b.txt": "b", "x/c.md": "c"})
    reader = Reader()
    reader.read(source_of(git))
    reader.read_media(source_of(git))
    wider = source_of(git, include=["**/*.md", "**/*.txt"], exclude=["x"])
    assert has_changes(wider, reader.state)
    changes = reader.read(wider)
    assert reader.contents() == {"a.md": b"a2", "b.txt": b"b"}
    assert set(story(changes)) == {("DELETE", "x/c.md", None), ("INSERT", "b.txt", None)}
    reader.read_media(wider)
    assert [(change.change_type, change.path) for change in reader.media] == [("INSERT", "b.txt"), ("DELETE", "b.txt")]


def test_a_repository_that_lost_its_commits_is_a_question(git: History, work: Path) -> None:
    git.commit({"a.md": "a"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    shutil.rmtree(git.path)
    with pytest.raises(SourceError, match="not a git repository"):
        reader.read(source)
    pygit2.init_repository(str(git.path), bare=True, initial_head="main")
    with pytest.raises(SourceVanishedError, match="Was the repository replaced"):
        reader.read(source)
    reader.read(source, allow_vanish=True)
    assert reader.contents() == {}


# Odd things


def test_links_and_submodules_are_listed(git: History) -> None:
    target = git.repository.create_blob(b"/etc/passwd")
    link, module = (0o120000, target), (0o160000, pygit2.Oid(hex="1" * 40))
    git.commit({"a.md": "a", "link.md": link, "module": module, "x/pic.png": link})
    source, reader = source_of(git), Reader()
    reader.read(source)
    assert reader.contents() == {"a.md": b"a"}
    assert reader.problems == {"link.md": ["symlink"], "module": ["submodule"], "x/pic.png": ["symlink"]}
    git.commit({"a.md": link, "link.md": "a file now"})
    reader.read(source)
    assert reader.contents() == {"link.md": b"a file now"}
    assert reader.problems == {"a.md": ["symlink"]}
    git.commit({"a.md": "a again", "link.md": "a file now"})
    reader.read(source)
    assert reader.problems == {}
    assert reader.ids()["a.md"] == ids.note_id("vault", "a.md")


def test_odd_paths_come_and_go_with_a_reset(git: History) -> None:
    link = (0o120000, git.repository.create_blob(b"x"))
    first = git.commit({"a.md": "a", "old.md": link})
    git.commit({"a.md": "a", "new.md": link})
    source, reader = source_of(git), Reader()
    reader.read(source)
    assert reader.problems == {"new.md": ["symlink"]}
    git.move(first)
    reader.read(source)
    assert reader.problems == {"old.md": ["symlink"]}
    git.commit({"b.md": "b"}, parents=[])
    reader.read(source)
    assert reader.problems == {}


def test_names_of_a_tree_may_be_anything(git: History) -> None:
    builder = git.repository.TreeBuilder()
    blob = git.repository.create_blob(b"x")
    nfd = unicodedata.normalize("NFD", "é.md")
    raw = git.repository.odb.write
    entries = sorted([b"bad \xff.md", b"line\nbreak.md", "🗒.md".encode(), nfd.encode(), "é.md".encode(), b"..md"])
    data = b"".join(b"100644 " + name + b"\0" + blob.raw for name in entries)
    tree = raw(pygit2.enums.ObjectType.TREE, data)
    del builder
    who = pygit2.Signature("A", "a@b", 1_700_000_000, 0)
    git.repository.create_commit("refs/heads/main", who, who, "m", tree, [])
    source, reader = source_of(git), Reader()
    reader.read(source)
    assert sorted(reader.contents()) == sorted(["line\nbreak.md", "🗒.md", "é.md", nfd])
    assert reader.problems["bad \\xff.md"] == ["undecodable-name"]
    assert [codes for path, codes in reader.problems.items() if path != "bad \\xff.md"] == [["name-twin"]]
    git.commit({"é.md": "other", nfd: "x"}, parents=[str(git.repository.references["refs/heads/main"].target)])
    git.commit({"é.md": "other", "b.md": "b"})
    reader.read(source)
    assert sorted(reader.contents().values()) == [b"b", b"other"]


def test_conflict_copies_are_listed(git: History) -> None:
    name = "a.sync-conflict-20240131-125959-ABCDEFG.md"
    git.commit({"a.md": "a", name: "b"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    assert reader.contents() == {"a.md": b"a"}
    assert reader.problems == {name: ["conflict-copy"]}
    git.commit({"a.md": "a"})
    reader.read(source)
    assert reader.problems == {}


def test_contents_that_are_odd(git: History) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12345\n"
    git.commit(
        {"a.md": b"\xff", "b.md": "x" * 200, "c.md": b"\0", "d.md": pointer, "e.png": pointer, "f.png": "x" * 99}
    )
    source = source_of(git, max_note_bytes=199, max_media_bytes=98)
    reader = Reader()
    reader.read(source)
    reader.read_media(source)
    assert sorted(reader.contents()) == ["a.md", "c.md", "d.md"]
    assert reader.problems == {
        "a.md": ["invalid-utf8"],
        "b.md": ["too-large"],
        "c.md": ["nul-bytes"],
        "d.md": ["lfs-pointer"],
        "e.png": ["lfs-pointer"],
        "f.png": ["bytes-not-kept"],
    }
    assert [(change.path, change.size_bytes, change.open) for change in reader.media] == [
        ("e.png", 12345, None),
        ("f.png", 99, None),
    ]
    git.commit({"a.md": "good", "b.md": "short", "f.png": "y"})
    reader.read(source)
    reader.read_media(source)
    assert reader.problems == {}
    assert reader.contents() == {"a.md": b"good", "b.md": b"short"}


def test_old_problems_are_on_their_rows_and_not_in_the_list(git: History) -> None:
    git.commit({"a.md": b"\xff"})
    git.commit({"a.md": "good"})
    reader = Reader()
    changes = reader.backfill(source_of(git), *ALL)
    assert [[problem.code for problem in change.problems] for change in changes] == [["invalid-utf8"], []]
    assert reader.problems == {}


def test_a_mode_alone_is_no_change(git: History) -> None:
    blob = git.repository.create_blob(b"a")
    git.commit({"a.md": (0o100644, blob)})
    git.commit({"a.md": (0o100755, blob)})
    assert len(Reader().backfill(source_of(git), *ALL)) == 1


# Media


def test_media_follow_the_commits(git: History) -> None:
    git.commit({"a.md": "a", "x/p.png": b"1" * (3 << 20), "b.canvas": "{}"})
    source, reader = source_of(git), Reader()
    changes = reader.read_media(source)
    assert [(change.change_type, change.path) for change in changes] == [("INSERT", "b.canvas"), ("INSERT", "x/p.png")]
    assert changes[1].open is not None
    chunks = list(changes[1].open())
    assert [len(chunk) for chunk in chunks] == [1 << 20] * 3
    git.commit({"a.md": "a", "y/p.png": b"2"})
    changes = reader.read_media(source)
    assert [(change.change_type, change.path) for change in changes] == [
        ("DELETE", "b.canvas"),
        ("DELETE", "x/p.png"),
        ("INSERT", "y/p.png"),
    ]
    assert reader.read(source) != []
    assert not has_changes(source, reader.state)


def test_media_are_told_again_after_a_reset(git: History) -> None:
    first = git.commit({"p.png": "1"})
    git.commit({"p.png": "2", "q.png": "q"})
    source, reader = source_of(git), Reader()
    reader.read_media(source)
    git.move(first)
    changes = reader.read_media(source)
    assert [(change.change_type, change.path) for change in changes] == [("UPDATE_AFTER", "p.png"), ("DELETE", "q.png")]
    assert changes[0].open is not None
    assert b"".join(changes[0].open()) == b"1"
    assert all(change.version for change in changes)


# Real clones


def run_git(*words: str, cwd: Path) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@b", "-c", "protocol.file.allow=always", *words],
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs the git command to make such a clone")


@needs_git
def test_a_shallow_clone_begins_at_its_boundary_and_can_be_deepened(git: History, work: Path) -> None:
    git.commit({"a.md": LONG, "b.md": "b"})
    git.commit({"c.md": LONG, "b.md": "b"})
    git.commit({"c.md": LONG, "b.md": "b2"})
    run_git("clone", "-q", "--bare", "--depth", "2", git.path.as_uri(), "shallow", cwd=work)
    source, reader = open_test_source(work / "shallow", kind="git"), Reader()
    reader.read(source)
    assert reader.contents() == {"c.md": LONG.encode(), "b.md": b"b2"}
    assert reader.problems == {".": ["shallow-clone"]}
    assert reader.ids()["c.md"] == ids.note_id("vault", "c.md")
    run_git("fetch", "-q", "--unshallow", cwd=work / "shallow")
    assert has_changes(source, reader.state)
    reader.read(source)
    assert reader.contents() == {"c.md": LONG.encode(), "b.md": b"b2"}
    assert reader.ids()["c.md"] == ids.note_id("vault", "a.md"), "now its first appearance is known"
    assert reader.problems == {}
    assert len(reader.backfill(source, *ALL)) > 0
    assert reader.contents() == {"c.md": LONG.encode(), "b.md": b"b2"}


@needs_git
def test_a_partial_clone_lists_what_is_missing(git: History, work: Path) -> None:
    git.commit({"a.md": "a", "p.png": "1"})
    run_git("config", "uploadpack.allowFilter", "true", cwd=git.path)
    run_git("clone", "-q", "--bare", "--filter=blob:none", git.path.as_uri(), "partial", cwd=work)
    source, reader = open_test_source(work / "partial", kind="git"), Reader()
    reader.read(source)
    reader.read_media(source)
    assert reader.changes == []
    assert reader.media == []
    assert reader.problems == {"a.md": ["missing-object"], "p.png": ["missing-object"]}
    run_git("clone", "-q", "--bare", "--filter=tree:0", git.path.as_uri(), "treeless", cwd=work)
    with pytest.raises(SourceError, match="refetch"):
        Reader().read(open_test_source(work / "treeless", kind="git"))


@needs_git
def test_a_real_vault(shared_data: Path, work: Path) -> None:
    run_git("clone", "-q", "--bare", str(shared_data / "git/kepano.bundle"), "kepano.git", cwd=work)
    path = work / "kepano.git"
    source, reader = open_test_source(path, kind="git"), Reader()
    head = reader.read(source)
    listed = run_git("ls-tree", "-r", "-z", "HEAD", cwd=path).split("\0")
    blobs = {line.split("\t")[1]: line.split()[2] for line in listed if line}
    notes = {name: oid for name, oid in blobs.items() if name.endswith(".md") and not name.startswith(".")}
    contents = reader.contents()
    assert set(contents) == set(notes)
    for name, oid in notes.items():
        assert contents[name] == pygit2.Repository(str(path))[pygit2.Oid(hex=oid)].peel(pygit2.Blob).data
    # The last commit that touched a path, as git itself sees it along the first parents.
    for change in head:
        last = run_git("log", "-1", "--first-parent", "-m", "--format=%H", "HEAD", "--", change.path, cwd=path)
        assert change.commit_id == last.strip(), change.path
    whole = Reader()
    whole.backfill(source, *ALL)
    assert {change.change_id for change in head} < {change.change_id for change in whole.changes}
    assert whole.contents() == contents
    assert whole.ids() == reader.ids()
    commits = run_git("rev-list", "--count", "--first-parent", "HEAD", cwd=path)
    assert int(commits) == 132 == len(list(reader.state.scan(keys.histories("vault"))))
    # git's own exact renames of notes are ours, too.
    log = run_git("log", "--first-parent", "-m", "-M100%", "--diff-filter=R", "--name-status", "--format=", cwd=path)
    renames = {tuple(line.split("\t")[1:]) for line in log.splitlines() if line}
    ours = {(change.previous_path, change.path) for change in whole.changes if change.previous_path}
    assert {pair for pair in renames if pair[1].endswith(".md")} <= ours
    media = reader.read_media(source)
    assert {change.path for change in media} == {name for name in blobs if name not in notes and name[0] != "."}


def test_a_path_that_no_file_system_takes_is_listed(git: History) -> None:
    deep = "/".join(["a folder name of sixty characters, which is quite a long one"] * 100) + "/a.md"
    git.commit({"a.md": "a", deep: "b"})
    source, reader = source_of(git), Reader()
    reader.read(source)
    assert reader.contents() == {"a.md": b"a"}
    [(path, codes)] = reader.problems.items()
    assert codes == ["name-too-long"]
    assert len(path) < 1100
