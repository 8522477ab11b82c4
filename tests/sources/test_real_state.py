"""The sources over the real state service: the same answers as over the dictionary, at a speed that will do."""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pygit2
import pytest

from pkm_pipelines.settings import StateSettings
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_client import State
from tests.sources.test_git_random import edit, random_history
from tests.support.state import end_services
from tests.support.vaults import History, Reader, open_test_source, write_vault

ALL = (dt.date(1970, 1, 1), dt.date(2100, 1, 1))


@pytest.fixture
def state(work: Path) -> Iterator[State]:
    with State.connect(Location((work / "state").as_uri()), StateSettings(idle_seconds=30), work / "run") as state:
        yield state
    end_services(work / "run")


def both(state: State) -> tuple[Reader, Reader]:
    return Reader(), Reader(state=state)  # type: ignore[arg-type]  # a State answers as a DictState does


def test_a_folder_lives_the_same_life(state: State, work: Path) -> None:
    rng = random.Random(7)
    root, files = work / "vault", {}
    (root / ".obsidian").mkdir(parents=True)
    source = open_test_source(root, batch_notes=3, max_vanished_share=1)
    simple, real = both(state)
    for _ in range(12):
        after = edit(files, rng)
        for gone in files.keys() - after.keys():
            (root / gone).unlink()
        write_vault(root, {path: text for path, text in after.items() if files.get(path) != text})
        files = after
        now = dt.datetime.now(dt.UTC)
        simple.read(source, now=now)
        real.read(source, now=now)
        assert real.contents() == simple.contents()
        assert not real.read(source)
    assert [change.change_id for change in real.changes] == [change.change_id for change in simple.changes]
    assert {key for key, _ in state.scan("note:")} == {key for key, _ in simple.state.scan("note:")}


def test_a_branch_lives_the_same_life(state: State, work: Path) -> None:
    git = random_history(work / "g", random.Random(3), 20)
    source = open_test_source(git.path, kind="git", batch_notes=4)
    simple, real = both(state)
    for reader in (simple, real):
        reader.read(source)
        reader.backfill(source, *ALL)
    older = str(git.repository.references["refs/heads/main"].peel(pygit2.Commit).parents[0].id)
    git.move(older)
    for reader in (simple, real):
        reader.read(source)
    assert real.contents() == simple.contents()
    assert [change.change_id for change in real.changes] == [change.change_id for change in simple.changes]
    assert dict(state.scan("note:")) == dict(simple.state.scan("note:"))
    assert dict(state.scan("history:")) == dict(simple.state.scan("history:"))


def test_a_first_commit_of_a_whole_vault_fits(state: State, work: Path) -> None:
    git = History(work / "g")
    git.commit({f"{n % 100}/{n}.md": f"note {n}" for n in range(5000)})
    _, real = both(state)
    assert len(real.read(open_test_source(git.path, kind="git", batch_notes=2000))) == 5000
    git.commit({"a.md": "a"}, parents=[])
    real.read(open_test_source(git.path, kind="git", batch_notes=2000))
    assert real.contents() == {"a.md": b"a"}


def test_an_unchanged_vault_costs_one_scan(state: State, work: Path) -> None:
    root = write_vault(work / "vault", {f"{n % 50}/{n}.md": f"note {n}" for n in range(3000)})
    source = open_test_source(root)
    _, real = both(state)
    real.read(source)
    started = time.perf_counter()
    assert real.read(source) == []
    assert not source.has_changes(state)
    assert time.perf_counter() - started < 3, "some 0.2 s are expected; a round trip a note would take longer than 3 s"
