"""Random lives of a branch: edits, renames, merges, amends and resets, told in any pieces, end as the branch is."""

from __future__ import annotations

import datetime as dt
import json
import random
import shutil
import tempfile
from pathlib import Path

import pygit2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pkm_pipelines.model import keys
from tests.support.vaults import DAY_ONE, History, Reader, open_test_source

PATHS = ["a.md", "b.md", "c.md", "x/a.md", "x/b.md", "y/a.md", "é.md", "e\u0301.md"]
LINES = [f"line {n} of some prose that is long enough to be alike" for n in range(12)]
CONTENTS = ["", "one", "two", "---\nid: 1\n---\n", "---\nid: 2\n---\n", "---\nid: 1\n---\nmore", "\n".join(LINES)]
paths = st.sampled_from(PATHS)
pick = st.integers(min_value=0, max_value=1000)
DAY = dt.timedelta(days=1)


def edit(files: dict[str, str], rng: random.Random) -> dict[str, str]:
    """A tree after one to three random changes."""
    files = dict(files)
    for _ in range(rng.choice([1, 1, 2, 3])):
        known = sorted(files)
        what = rng.choice(["write", "write", "grow", "delete", "move", "move", "swap", "folder"])
        if what == "write" or not known:
            files[rng.choice(PATHS)] = rng.choice([*CONTENTS, f"text {rng.random()}"])
        elif what == "grow":
            files[rng.choice(known)] += f"\ngrown by {rng.randrange(100)}"
        elif what == "delete":
            del files[rng.choice(known)]
        elif what == "move":
            content = files.pop(rng.choice(known))
            files[rng.choice(PATHS)] = content + rng.choice(["", "", "\nand edited"])
        elif what == "swap":
            one, other = rng.choice(known), rng.choice(known)
            files[one], files[other] = files[other], files[one]
        else:
            moved = {path.replace("x/", "y/"): content for path, content in files.items() if path.startswith("x/")}
            files = {path: content for path, content in files.items() if not path.startswith("x/")} | moved
    return files


def random_history(work: Path, rng: random.Random, commits: int) -> History:
    """A branch with merges of short side branches; some committers' clocks are wrong."""
    git, files = History(work), {}
    for n in range(commits):
        at = DAY_ONE + DAY * (n // 2) + dt.timedelta(hours=rng.choice([0, 5, 5, -40, 9]))
        parents = None
        if n and rng.random() < 0.2:
            tip = str(git.repository.references["refs/heads/main"].target)
            side = git.commit(edit(files, rng), parents=[tip], branch=None, at=at)
            parents = [tip, side]
        files = edit(files, rng)
        git.commit(files, parents=parents, at=at)
    return git


@pytest.mark.timeout(600)
def test_days_in_any_order_tell_the_same(ram_folder: Path, budget: int) -> None:
    @settings(max_examples=40 * budget, deadline=None)
    @given(seed=st.integers(0, 2**32), commits=st.integers(1, 25), data=st.data())
    def check(seed: int, commits: int, data: st.DataObject) -> None:
        work = Path(tempfile.mkdtemp(dir=ram_folder))
        try:
            git = random_history(work / "g", random.Random(seed), commits)
            source = open_test_source(git.path, kind="git", batch_notes=4)
            whole = Reader()
            whole.backfill(source, dt.date(1970, 1, 1), dt.date(2100, 1, 1))
            days = sorted({change.partition_date for change in whole.changes})
            # Cut the days into ranges and ask for them in any order; now and then, HEAD in between.
            cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(days) - 1)), max_size=5)))
            ranges = [days[a:b] for a, b in zip([0, *cuts], [*cuts, len(days)], strict=True) if days[a:b]]
            reader = Reader()
            head_at = data.draw(st.integers(0, len(ranges)))
            for n, some in enumerate(data.draw(st.permutations(ranges))):
                if n == head_at:
                    reader.read(source)
                reader.backfill(source, some[0], some[-1])
            reader.read(source)
            facts = {(c.change_id, c.changed_at, c.note_id, c.path, c.content) for c in whole.changes}
            assert {(c.change_id, c.changed_at, c.note_id, c.path, c.content) for c in reader.changes} == facts
            assert reader.ids() == whole.ids()
            fresh = Reader()
            fresh.read(source)
            assert {c.change_id for c in fresh.changes} <= {c.change_id for c in whole.changes}
            assert fresh.contents() == reader.contents() == whole.contents()
            assert len(whole.changes) == len({change.change_id for change in whole.changes})
        finally:
            shutil.rmtree(work)

    check()


class BranchLife(RuleBasedStateMachine):
    """Commits and resets; `self.files` is the tree of the tip."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.work = Path(tempfile.mkdtemp(dir=self.folder))
        self.git = History(self.work / "g")
        self.files: dict[str, str] = {}
        self.commits: list[tuple[str, dict[str, str], list[str]]] = []
        self.reader = Reader()
        self.source = open_test_source(self.git.path, kind="git", batch_notes=2, batch_bytes=200)

    def teardown(self) -> None:
        if self.commits:
            self.finish()
        shutil.rmtree(self.work)

    def _commit(self, files: dict[str, str], parents: list[str] | None, hours: int) -> None:
        at = DAY_ONE + dt.timedelta(hours=hours)
        oid = self.git.commit(files, parents=parents, at=at)
        self.files = files
        self.commits.append((oid, files, [str(p) for p in self.git.repository[oid].peel(pygit2.Commit).parent_ids]))

    @rule(seed=st.integers(0, 2**32), hours=st.integers(0, 100))
    def commit(self, seed: int, hours: int) -> None:
        self._commit(edit(self.files, random.Random(seed)), None, hours)

    @precondition(lambda self: self.commits)
    @rule(seed=st.integers(0, 2**32), n=pick, hours=st.integers(0, 100))
    def amend(self, seed: int, n: int, hours: int) -> None:
        """A commit in place of some earlier one, which was perhaps never on the branch's chain."""
        _, files, parents = self.commits[n % len(self.commits)]
        self._commit(edit(files, random.Random(seed)), parents, hours)

    @precondition(lambda self: self.commits)
    @rule(n=pick)
    def set_to_any_commit(self, n: int) -> None:
        oid, self.files, _ = self.commits[n % len(self.commits)]
        self.git.move(oid)

    @precondition(lambda self: self.commits)
    @rule(batches=st.integers(1, 4), lose=st.booleans())
    def read_and_be_killed(self, batches: int, lose: bool) -> None:
        self.reader.read(self.source, stop_after=batches, lose_last=lose)
        if lose:
            self.reader.read(self.source)

    @precondition(lambda self: self.commits)
    @rule(first=st.integers(0, 5), days=st.integers(0, 5))
    def backfill(self, first: int, days: int) -> None:
        start = (DAY_ONE + DAY * first).date()
        self.reader.backfill(self.source, start, start + DAY * days)

    @precondition(lambda self: self.commits)
    @rule()
    def finish(self) -> None:
        self.reader.read(self.source)
        told = sorted(content.decode() for content in self.reader.contents().values() if content is not None)
        assert told == sorted(self.files.values())
        ascii_told = {
            path: text.decode() for path, text in self.reader.contents().items() if path.isascii() and text is not None
        }
        assert ascii_told == {path: text for path, text in self.files.items() if path.isascii()}
        self.reader.read_media(self.source)
        assert not self.source.has_changes(self.reader.state)
        fresh = Reader()
        fresh.read(self.source)
        assert self.index(self.reader) == self.index(fresh), "an index that was stepped back is a fresh one"
        assert self.reader.ids() == fresh.ids()
        assert not list(self.reader.state.scan(keys.CORRECTION))

    @staticmethod
    def index(reader: Reader) -> dict[str, object]:
        return {
            key: {name: part for name, part in json.loads(value).items() if name != "changed"}
            for prefix in (keys.NOTE, keys.IDENTITY)
            for key, value in reader.state.scan(prefix)
        }

    @invariant()
    def change_ids_are_unique(self) -> None:
        assert len({change.change_id for change in self.reader.changes}) == len(self.reader.changes)


@pytest.mark.timeout(600)
def test_a_branch_ends_as_it_is(ram_folder: Path, budget: int) -> None:
    BranchLife.folder = ram_folder
    run_state_machine_as_test(
        BranchLife, settings=settings(max_examples=50 * budget, stateful_step_count=20, deadline=None)
    )
