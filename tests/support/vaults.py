"""Small vaults and git histories for tests, and a reader of sources that does what the ingest does."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pygit2

from pkm_pipelines.model.records import MediaChange, NoteChange, Problem, SourceBatch
from pkm_pipelines.settings import SourceSettings
from pkm_pipelines.sources import Source, StateReader, open_source
from tests.support.dict_state import DictState

DAY_ONE = dt.datetime(2024, 3, 1, 12, tzinfo=dt.UTC)


def write_vault(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write `files` (path → content) below `root`."""
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def open_test_source(
    path: Path, *, kind: str = "folder", batch_notes: int = 1000, batch_bytes: int = 1 << 20, **settings: Any
) -> Source:
    """A source called `vault`."""
    values = SourceSettings.model_validate({"name": "vault", "kind": kind, "path": path, **settings})
    return open_source(values, path, batch_notes, batch_bytes)


def note_changes(batch: SourceBatch) -> list[NoteChange]:
    """The changes of a batch; fails if one of them is no note's."""
    found = [change for change in batch.changes if isinstance(change, NoteChange)]
    assert len(found) == len(batch.changes)
    return found


@dataclass
class Reader:
    """Reads a source into memory, applying each batch as the ingest does.

    `changes` is bronze: what was observed, each change once by its `change_id`. `problems` is what `pkm status
    --problems` would show: codes by path.
    """

    state: DictState = field(default_factory=DictState)
    changes: list[NoteChange] = field(default_factory=list)
    media: list[MediaChange] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    batches: list[SourceBatch] = field(default_factory=list)

    def read(
        self,
        source: Source,
        *,
        now: dt.datetime | None = None,
        stop_after: int | None = None,
        lose_last: bool = False,
        allow_vanish: bool = False,
    ) -> list[NoteChange]:
        """Take in the changes of `notes` and return the new ones.

        After `stop_after` batches it stops, as if killed then; with `lose_last` when the last one's changes
        were durable and its mutations were not.
        """
        batches = source.notes(self.state, now or dt.datetime.now(dt.UTC), allow_vanish=allow_vanish)
        return self.take(batches, stop_after, lose_last)

    def read_media(self, source: Source, *, now: dt.datetime | None = None) -> list[MediaChange]:
        """Take in the changes of `media`; returns the new ones."""
        before = len(self.media)
        self.take(source.media(self.state, now or dt.datetime.now(dt.UTC)))
        return self.media[before:]

    def backfill(self, source: Source, first: dt.date, last: dt.date) -> list[NoteChange]:
        """Take in the changes of some days."""
        return self.take(source.history(self.state, first, last))

    def take(
        self, batches: Iterator[SourceBatch], stop_after: int | None = None, lose_last: bool = False
    ) -> list[NoteChange]:
        """Take in batches; see `read`."""
        known = {change.change_id: change for change in self.changes}
        new: list[NoteChange] = []
        for count, batch in enumerate(batches, start=1):
            for change in batch.changes:
                if isinstance(change, MediaChange):
                    self.media.append(change)
                elif change.change_id in known:
                    same = known[change.change_id]
                    assert (change.note_id, change.path, change.content) == (same.note_id, same.path, same.content)
                else:
                    known[change.change_id] = change
                    new.append(change)
            self._tell(batch.problems, batch.resolved_problems)
            if count == stop_after and lose_last:
                break
            self.state.apply(batch.mutations)
            self.batches.append(batch)
            if count == stop_after:
                break
        self.changes += new
        return new

    def _tell(self, problems: Iterable[Problem], resolved: Iterable[str]) -> None:
        for path in resolved:
            self.problems.pop(path, None)
        told: dict[str, list[str]] = {}
        for problem in problems:
            told.setdefault(problem.path, []).append(problem.code)
        self.problems.update(told)

    def newest(self) -> dict[str, NoteChange]:
        """The newest change of each note: greatest (changed_at, ordinal, order of arrival)."""
        newest: dict[str, NoteChange] = {}
        for change in self.changes:
            old = newest.get(change.note_id)
            if old is None or (change.changed_at, change.ordinal) >= (old.changed_at, old.ordinal):
                newest[change.note_id] = change
        return newest

    def contents(self) -> dict[str, bytes | None]:
        """Path → content of the notes that are alive, as silver would have them."""
        alive = [change for change in self.newest().values() if change.change_type != "DELETE"]
        paths = [change.path for change in alive]
        assert len(paths) == len(set(paths)), f"two notes at one path: {sorted(paths)}"
        return {change.path: change.content for change in alive}

    def ids(self) -> dict[str, str]:
        """Path → id of the notes that are alive."""
        return {c.path: c.note_id for c in self.newest().values() if c.change_type != "DELETE"}


def has_changes(source: Source, state: StateReader) -> bool:
    """What a sensor asks; the fingerprint must then be there, too."""
    assert source.fingerprint(state) == source.fingerprint(state)
    return source.has_changes(state)


class History:
    """A git repository that is built commit by commit, without a work tree. Trees are given whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repository = pygit2.init_repository(str(path), bare=True, initial_head="main")
        self.minutes = 0

    def tree(self, files: Mapping[str, str | bytes | tuple[int, Any]]) -> pygit2.Oid:
        """A tree of `files`: content, or (mode, oid) for what is no file."""
        builder = self.repository.TreeBuilder()
        folders: dict[str, dict[str, Any]] = {}
        for path, content in files.items():
            head, slash, rest = path.partition("/")
            if slash:
                folders.setdefault(head, {})[rest] = content
            elif isinstance(content, tuple):
                builder.insert(head, content[1], content[0])
            else:
                data = content.encode() if isinstance(content, str) else content
                builder.insert(head, self.repository.create_blob(data), 0o100644)
        for name, below in folders.items():
            builder.insert(name, self.tree(below), 0o040000)
        return builder.write()

    def commit(
        self,
        files: Mapping[str, Any],
        *,
        parents: list[str] | None = None,
        branch: str | None = "main",
        at: dt.datetime | None = None,
        message: str = "a commit",
    ) -> str:
        """Commit `files` as the whole tree, an hour after the commit before; returns the commit's id."""
        self.minutes += 60
        time = at or DAY_ONE + dt.timedelta(minutes=self.minutes)
        who = pygit2.Signature("Ann Author", "ann@example.com", int(time.timestamp()), 0)
        reference = f"refs/heads/{branch}" if branch else None
        if parents is None:
            known = reference is not None and reference in self.repository.references
            parents = [str(self.repository.references[reference].target)] if known and reference else []
        oid = self.repository.create_commit(None, who, who, message, self.tree(files), parents)
        if reference:
            self.repository.references.create(reference, oid, force=True)
        return str(oid)

    def move(self, commit: str, branch: str = "main") -> None:
        """Point a branch elsewhere, as a force-push does."""
        self.repository.references.create(f"refs/heads/{branch}", commit, force=True)


def empty(folder: Path) -> None:
    """Delete everything in a folder, and not the folder."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
