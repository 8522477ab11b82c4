"""Random lives of a vault: replaying what was observed gives what is on disk, also when scans are killed."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pkm_pipelines.model import keys
from tests.support.vaults import Reader, open_test_source

PATHS = ["a.md", "A.md", "b.md", "c.md", "x/a.md", "x/b.md", "x/y/c.md", "z/a.md", "é.md", "e\u0301.md"]
CONTENTS = ["", "one", "two", "three", "---\nid: 1\n---\n", "---\nid: 1\n---\nmore", "---\nid: 2\n---\n", "\xff"]

paths = st.sampled_from(PATHS)
pick = st.integers(min_value=0, max_value=1000)


class VaultLife(RuleBasedStateMachine):
    """Edits a vault on disk and scans it now and then; `self.files()` is the truth."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=self.folder))
        (self.root / ".obsidian").mkdir()
        self.source = open_test_source(self.root, batch_notes=2, batch_bytes=64, max_vanished_share=1)
        self.reader = Reader()
        self.clock = itertools.count()

    def teardown(self) -> None:
        self.finish()
        shutil.rmtree(self.root)

    def files(self) -> dict[str, bytes]:
        found = self.root.rglob("*.md")
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found if path.is_file()}

    def target(self, path: str) -> Path:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        return self.root / path

    def any_file(self, n: int) -> Path:
        files = sorted(self.files())
        return self.root / files[n % len(files)]

    @rule(path=paths, content=st.sampled_from(CONTENTS))
    def write(self, path: str, content: str) -> None:
        self.target(path).write_bytes(content.encode("latin-1"))

    @rule(path=paths)
    def write_something_new(self, path: str) -> None:
        self.target(path).write_text(f"text {next(self.clock)}")

    @precondition(lambda self: self.files())
    @rule(n=pick)
    def delete(self, n: int) -> None:
        self.any_file(n).unlink()

    @precondition(lambda self: self.files())
    @rule(n=pick, path=paths)
    def move(self, n: int, path: str) -> None:
        self.any_file(n).replace(self.target(path))

    @precondition(lambda self: self.files())
    @rule(n=pick, path=paths)
    def copy(self, n: int, path: str) -> None:
        self.target(path).write_bytes(self.any_file(n).read_bytes())

    @precondition(lambda self: self.files())
    @rule(n=pick, m=pick)
    def swap(self, n: int, m: int) -> None:
        one, other, between = self.any_file(n), self.any_file(m), self.root / ".between"
        if one != other:
            one.replace(between)
            other.replace(one)
            between.replace(other)

    @precondition(lambda self: (self.root / "x").exists())
    @rule()
    def move_folder(self) -> None:
        shutil.rmtree(self.root / "z", ignore_errors=True)
        (self.root / "x").rename(self.root / "z")

    @precondition(lambda self: (self.root / "z").exists())
    @rule()
    def move_folder_back(self) -> None:
        if not (self.root / "x").exists():
            (self.root / "z").rename(self.root / "x")

    @rule(batches=st.integers(min_value=1, max_value=3), lose=st.booleans())
    def scan_and_be_killed(self, batches: int, lose: bool) -> None:
        self.reader.read(self.source, stop_after=batches, lose_last=lose)
        if lose:
            self.finish()  # the ingest settles what it left open before anything else

    @rule()
    def finish(self) -> None:
        """Scan to the end: now bronze must tell what is on disk."""
        self.reader.read(self.source)
        truth = self.files()
        told = self.reader.contents()
        assert sorted(told.values()) == sorted(truth.values())
        assert {path: content for path, content in told.items() if path.isascii()} == {
            path: content for path, content in truth.items() if path.isascii()
        }
        note_ids = self.reader.ids()
        assert len(set(note_ids.values())) == len(note_ids)
        assert self.reader.read(self.source) == []
        self.check_register(note_ids)

    def check_register(self, note_ids: dict[str, str]) -> None:
        """Every note has one entry, and the record of its id names it."""
        entries: dict[str, str] = {}
        for key, value in self.reader.state.scan(keys.notes("vault")):
            entry = json.loads(value)
            path = key.removeprefix(keys.notes("vault"))
            if "id" in entry:
                assert entry["id"] not in entries, f"{entry['id']} stands at {path!r} and {entries[entry['id']]!r}"
                entries[entry["id"]] = path
                assert "deleted" in entry or note_ids[path] == entry["id"]
        for key, value in self.reader.state.scan(keys.IDENTITY):
            assert entries[key.removeprefix(keys.IDENTITY)] == json.loads(value)["path"]

    @invariant()
    def times_of_a_note_grow(self) -> None:
        last: dict[str, dt.datetime] = {}
        for change in self.reader.changes:
            assert change.note_id not in last or change.changed_at > last[change.note_id]
            last[change.note_id] = change.changed_at


@pytest.mark.timeout(600)
def test_what_was_observed_is_what_is_there(ram_folder: Path, budget: int) -> None:
    VaultLife.folder = ram_folder
    run_state_machine_as_test(
        VaultLife, settings=settings(max_examples=60 * budget, stateful_step_count=25, deadline=None)
    )
