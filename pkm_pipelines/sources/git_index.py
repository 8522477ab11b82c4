"""The index of a git source: what each first-parent commit did to which note, kept in the state.

A note's id depends on where it first appeared, so on the whole chain of commits before. The index is that chain, read
once and extended commit by commit; a backfill of any days then only looks up what it needs. It holds no contents
and is rebuilt from git at will. Each commit's record keeps what it overwrote, so that the index can step back
when a branch is reset (git_reset.py), and is after that exactly what it was.

Under `history:<source>:<ordinal>` lie four lines of JSON: facts of the commit, changes of notes, changes of other
files, and the values that it overwrote.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pkm_pipelines.model import keys
from pkm_pipelines.model.records import SourceBatch
from pkm_pipelines.sources.base import StateReader
from pkm_pipelines.sources.batches import Batcher, to_datetime, to_us
from pkm_pipelines.sources.commits import CommitDelta, read_commit
from pkm_pipelines.sources.git_step import FileRecord, NoteRecord, Step, forms
from pkm_pipelines.sources.identity import Entry, Register
from pkm_pipelines.sources.overlay import Overlay, dump
from pkm_pipelines.sources.repository import OID_BYTES, GitRepository
from pkm_pipelines.sources.vault import Kind, Layout

FORMAT = 1
# Commits read ahead, so that what they touch is looked up in one round trip.
_WINDOW_COMMITS = 128
_WINDOW_CHANGES = 2000
_WRITES_PER_BATCH = 4000
_KEPT = ("backfilled", "high", "reset", "told", "resets", "future", "problems")
WHOLE = "."  # the path of a problem of the repository as a whole


class Header(NamedTuple):
    """Facts of an indexed commit; `changed_us` is its `changed_at`, `alive` the notes that are alive after it."""

    commit: str
    changed_us: int
    alive: int


@dataclass(frozen=True)
class Record:
    """Everything about one indexed commit."""

    ordinal: int
    header: Header
    notes: list[NoteRecord]
    files: list[FileRecord]
    undo: dict[str, str | None] | None

    def dump(self) -> bytes:
        """The value for the state."""
        return b"\n".join(dump(part) for part in (self.header, self.notes, self.files, self.undo))

    @classmethod
    def load(cls, ordinal: int, value: bytes) -> Record:
        """From the value in the state."""
        header, notes, files, undo = value.split(b"\n")
        return cls(
            ordinal,
            Header(*json.loads(header)),
            [NoteRecord(*item) for item in json.loads(notes)],
            [FileRecord(*item) for item in json.loads(files)],
            json.loads(undo),
        )


def load_header(value: bytes) -> Header:
    """Only the facts of the commit."""
    return Header(*json.loads(value[: value.index(b"\n")]))


class Index:
    """The index as it is in the state, and how it grows. `commit` is its newest commit, None if it is empty."""

    def __init__(self, source: str, state: StateReader, layout: Layout, shape: str) -> None:
        self.source = source
        self.state = state
        self.layout = layout
        self.overlay = Overlay(state, keys.cursor(source))
        self.register = Register(source, self.overlay)
        self.batcher = Batcher(source, self.overlay, max_changes=_WRITES_PER_BATCH, max_bytes=1)
        self.shape = f"{FORMAT} {shape}"
        if self.overlay.is_new:
            self.forget()

    # The cursor

    @property
    def commit(self) -> str | None:
        """The newest indexed commit."""
        return self.overlay.cursor["commit"]

    @property
    def ordinal(self) -> int:
        """Its position on the chain, from 0; -1 in an empty index."""
        return self.overlay.cursor["ordinal"]

    @property
    def alive(self) -> int:
        """How many notes are alive at the newest commit."""
        return self.overlay.cursor["alive"]

    @property
    def high_us(self) -> int:
        """The greatest `changed_at` that was ever given to a change of this source."""
        return self.overlay.cursor.get("high", 0)

    @property
    def is_outdated(self) -> bool:
        """Whether it was made for other settings, or is only half cleared."""
        return self.overlay.cursor["shape"] != self.shape or bool(self.overlay.cursor.get("clearing"))

    def forget(self) -> None:
        """Begin an empty index; what outlives it are the greatest time, the resets and what is odd."""
        kept = {key: self.overlay.cursor[key] for key in _KEPT if key in self.overlay.cursor}
        fresh = {"commit": None, "ordinal": -1, "changed": 0, "alive": 0, "shape": self.shape}
        self.overlay.cursor = {**fresh, **kept}

    def set_tip(self, ordinal: int, header: Header | None) -> None:
        """Move the cursor to a commit of the index, or before the first one."""
        cursor = self.overlay.cursor
        cursor["ordinal"] = ordinal
        cursor["commit"] = header.commit if header else None
        cursor["changed"] = header.changed_us if header else 0
        cursor["alive"] = header.alive if header else 0

    def header(self, ordinal: int) -> Header:
        """The facts of an indexed commit."""
        value = self.overlay.get(keys.history(self.source, ordinal))
        assert value is not None
        return load_header(value)

    def records(self, first: int) -> Iterator[Record]:
        """The indexed commits from ordinal `first` on, oldest first."""
        prefix = keys.histories(self.source)
        after = keys.history(self.source, first - 1) if first > 0 else None
        for key, value in self.state.scan(prefix, start_after=after):
            yield Record.load(int(key.removeprefix(prefix)), value)

    def first_on_or_after(self, day: dt.date) -> int:
        """The ordinal of the first commit that is not before `day`; one more than the last if there is none."""
        start_us = to_us(dt.datetime.combine(day, dt.time(), dt.UTC))
        low, high = 0, self.ordinal + 1
        while low < high:
            middle = (low + high) // 2
            if self.header(middle).changed_us < start_us:
                low = middle + 1
            else:
                high = middle
        return low

    # Growing

    def extend(self, repository: GitRepository, chain: bytes, now: dt.datetime) -> Iterator[SourceBatch]:
        """Append the commits of `chain` (ids of 20 bytes each, oldest first)."""
        ids = [chain[at : at + OID_BYTES] for at in range(0, len(chain), OID_BYTES)]
        at = 0
        while at < len(ids):
            window: list[CommitDelta] = []
            changes = 0
            parent = self.commit
            while at < len(ids) and len(window) < _WINDOW_COMMITS and changes < _WINDOW_CHANGES:
                delta = read_commit(repository, self.layout, parent, ids[at].hex())
                window.append(delta)
                changes += len(delta.added) + len(delta.removed) + len(delta.modified)
                parent, at = delta.info.oid, at + 1
            self._prefetch(window)
            for delta in window:
                self._append(delta, to_us(now))
                if len(self.overlay) >= _WRITES_PER_BATCH:
                    yield from self.batcher.flush()
        for key in ("reset", "told"):
            self.overlay.cursor.pop(key, None)
        yield from self.batcher.flush()

    def _prefetch(self, window: list[CommitDelta]) -> None:
        wanted = [self.removed_key(delta.info.oid) for delta in window]
        for delta in window:
            for blob in (*delta.removed, *delta.added, *delta.modified):
                key = keys.note if blob.kind == "note" else keys.file
                wanted += (key(self.source, path) for path in forms(blob.raw))
            for blob in delta.added:
                if blob.kind == "note":
                    wanted += self.register.lookups(forms(blob.raw)[0], delta.stated.get(blob.raw))
        self.overlay.prefetch(wanted)
        found = (json.loads(value) for key in wanted if key.startswith(keys.NOTE) and (value := self.overlay.get(key)))
        self.overlay.prefetch(keys.identity(entry["id"]) for entry in found if "id" in entry)

    def _append(self, delta: CommitDelta, now_us: int) -> None:
        cursor = self.overlay.cursor
        ordinal = self.ordinal + 1
        committed_us = delta.info.committed_us
        if committed_us > now_us:
            cursor["future"] = max(committed_us, cursor.get("future", 0))
            committed_us = now_us
        # Later than all that was ever told, so that what comes after a reset wins over what was before; while the
        # commits of a reset itself are read again they keep their own times, and corrections do the winning.
        floor_us = cursor["changed"] if "reset" in cursor else self.high_us
        changed_us = max(committed_us, floor_us + 1) if ordinal or floor_us else committed_us
        step = Step(self.register, delta, ordinal, changed_us)
        is_again = self.overlay.get(self.removed_key(delta.info.oid)) is not None
        if is_again:
            self.overlay.put(self.removed_key(delta.info.oid), None)
        self.overlay.begin_journal()
        step.apply(self._mark_touched if is_again or "reset" in cursor else None)
        journal = self.overlay.end_journal()
        undo = {
            key: value.decode() if value is not None else None
            for key, value in journal.items()
            if not key.startswith(keys.CORRECTION)  # marks outlive the commits that made them
        }
        header = Header(delta.info.oid, changed_us, self.alive + step.born)
        record = Record(ordinal, header, step.notes, step.files, undo if ordinal else None)
        self.overlay.put(keys.history(self.source, ordinal), record.dump())
        self.set_tip(ordinal, header)
        for path, before, after in step.odd:
            self.batcher.tell(path, before, self.batcher.problems(path, after))
        cursor["high"] = max(changed_us, self.high_us)

    def _mark_touched(self, kind: Kind, name: str, path: str, entry: Entry | None) -> None:
        self.mark("notes" if kind == "note" else "media", name, path, entry)

    def tell_whole(self, boundary: str | None, now: dt.datetime) -> None:
        """Tell what is odd about the repository as a whole, if that is not what was told."""
        cursor = self.overlay.cursor
        codes: list[tuple[str, object]] = []
        if boundary:
            codes.append(("shallow-clone", boundary))
        if (future_us := cursor.get("future", 0)) > to_us(now):
            codes.append(("future-commit", to_datetime(future_us).isoformat()))
        problems = self.batcher.problems(WHOLE, codes)
        told = [problem.code for problem in problems]
        self.batcher.tell(WHOLE, cursor.get("problems", []), problems)
        if told != cursor.get("problems", []):
            cursor["problems"] = told

    # Corrections

    def removed_key(self, commit: str) -> str:
        """The key that says that a commit was once taken off the branch.

        Its changes are in bronze, and are not appended again if it comes back: its notes must be corrected then.
        """
        return keys.cursor(f"{self.source}/removed/{commit}")

    def begin_backfill(self) -> Iterator[SourceBatch]:
        """Remember that changes of the past are told, also of notes that are deleted by now."""
        self.overlay.cursor["backfilled"] = True
        yield from self.batcher.flush()

    @property
    def is_backfilled(self) -> bool:
        """Whether changes of the past were ever told."""
        return "backfilled" in self.overlay.cursor

    def deleted(self, note_ids: Iterable[str]) -> Iterator[tuple[str, Entry]]:
        """Path and entry of those of the notes that are deleted at the newest commit."""
        paths = self.register.holders(note_ids)
        self.overlay.prefetch(keys.note(self.source, path) for path in paths.values())
        for path in paths.values():
            entry = self.register.entry(path)
            if entry and entry.get("deleted"):
                yield path, entry

    def begin_reset(self) -> None:
        """From here until the chain is indexed again, remember how every note that is touched was told last."""
        cursor = self.overlay.cursor
        if "reset" not in cursor:
            cursor["told"] = {content: self._told(content) for content in ("notes", "media")}
            cursor["resets"] = cursor["reset"] = cursor.get("resets", 0) + 1

    def _told(self, content: str) -> int:
        """The ordinal of the last commit whose changes were told; -1 if not even the newest state was."""
        if "reset" in self.overlay.cursor:
            return self.overlay.cursor["told"][content]
        raw = self.overlay.get(keys.cursor(f"{self.source}/{content}"))
        cursor = json.loads(raw) if raw else {}
        return -1 if "head" in cursor else cursor.get("ordinal", -1)

    def mark(self, content: str, name: str, path: str, entry: Entry | None) -> None:
        """Remember how a note was told last, once in each reset.

        `content` is notes or media, `name` the note's id or the file's path. The mark says `force` where nobody knows
        what was told last: the index is ahead of what was told, or a correction of an earlier reset is still due.
        """
        source = self.source if content == "notes" else f"{self.source}/media"
        reset = self.overlay.cursor.get("reset")
        key = keys.correction(source, name)
        known = self.overlay.get(key)
        if known is None:
            alive = entry is not None and not entry.get("deleted")
            facts = {fact: (entry or {}).get(fact) for fact in ("oid", "commit", "changed")}
            is_ahead = entry is not None and entry.get("ordinal", -1) > self._told(content)
            mark = {"reset": reset, "path": path, "alive": alive, "force": is_ahead, **facts}
        elif json.loads(known)["reset"] != reset:
            mark = {**json.loads(known), "reset": reset, "force": True}
        else:
            return
        self.overlay.put(key, dump(mark))
