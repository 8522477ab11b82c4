"""One commit, applied to the register of a git source: who is which note after it.

Entries of notes hold `oid` (of the blob; a deleted note has none), `ordinal`, `commit`, `changed` (of the last commit
that touched the note), `kind` and `from` (what it did), `raw` (the path in the tree, if that is not the path), and
`codes` (problems and details that were found on the way). Entries of other files are the same without an id.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pkm_pipelines.model import keys
from pkm_pipelines.sources.commits import Blob, CommitDelta
from pkm_pipelines.sources.identity import Entry, Register
from pkm_pipelines.sources.overlay import dump
from pkm_pipelines.sources.vault import Kind

Codes = list[tuple[str, str]]
# Told before a note or file changes: its kind, id (or path), path, and entry.
Touched = Callable[[Kind, str, str, Entry | None], None]


class NoteRecord(NamedTuple):
    """One change of a note in a commit: kind is I, U or D, `codes` are problems with their details."""

    kind: str
    path: str
    previous: str | None
    note_id: str
    oid: str | None
    codes: list[tuple[str, str]]


class FileRecord(NamedTuple):
    """One change of a file that is no note."""

    kind: str
    path: str
    oid: str | None


def forms(raw: str) -> tuple[str, ...]:
    """The paths under which a file of a tree may stand: NFC, or as it is, or NFD if it is a twin."""
    if raw.isascii():
        return (raw,)
    composed, decomposed = unicodedata.normalize("NFC", raw), unicodedata.normalize("NFD", raw)
    return tuple(dict.fromkeys((composed, raw, decomposed)))


@dataclass
class Step:
    """Applies one commit. `notes` and `files` are its changes, `odd` what is odd now (path, codes before, after).

    `born` is how many more notes are alive after it.
    """

    register: Register
    delta: CommitDelta
    ordinal: int
    changed_us: int
    notes: list[NoteRecord] = field(default_factory=list[NoteRecord])
    files: list[FileRecord] = field(default_factory=list[FileRecord])
    odd: list[tuple[str, list[str], Codes]] = field(default_factory=list[tuple[str, list[str], Codes]])
    born: int = 0
    touched: Touched | None = None

    def apply(self, touched: Touched | None) -> None:
        """Change the register; deletes come first, then edits, then renames, then new notes."""
        self.touched = touched
        notes = {blob.raw: blob for blob in self.delta.removed if blob.kind == "note"}
        gone = {raw: (path, self._entry("note", path)) for raw in notes for path in (self._path("note", raw),)}
        moves = self.delta.moves()
        added = [blob for blob in self.delta.added if blob.kind == "note"]
        self._match_stated(moves, gone, added)
        leaving = set(moves.values())
        for odd in self.delta.odd_removed:
            self._odd(odd.path, [])
        for raw, (path, entry) in gone.items():
            if raw not in leaving:
                self._delete(path, entry)
        for blob in self.delta.modified:
            if blob.kind == "note":
                path = self._path("note", blob.raw)
                self._put_note("U", path, None, self._entry("note", path), blob)
        for raw in leaving:
            self.register.vacate(gone[raw][0])
        for blob in added:
            if blob.raw in moves:
                old_path, entry = gone[moves[blob.raw]]
                path = self._new_path(blob)
                self._put_note("U", path, old_path if old_path != path else None, entry, blob)
        for blob in added:
            if blob.raw not in moves:
                self._insert(blob)
        self._apply_files()
        for odd in self.delta.odd_added:
            self._odd(odd.path, [(odd.code, "")])

    # Paths

    def _path(self, kind: Kind, raw: str) -> str:
        """Where the file that is `raw` in the tree stands."""
        if raw.isascii():
            return raw
        candidates = forms(raw)
        for path in candidates:
            entry = self._peek(kind, path)
            if entry and not entry.get("deleted") and entry.get("raw", path) == raw:
                return path
        return candidates[0]

    def _new_path(self, blob: Blob) -> str:
        """Where a file that appears will stand: in NFC, unless a twin stands there."""
        if blob.raw.isascii():
            return blob.raw
        composed, *others = forms(blob.raw)
        for path in (composed, *(path for path in others if path == blob.raw), *others):
            entry = self._peek(blob.kind, path)
            if not entry or "oid" not in entry or entry.get("deleted") or entry.get("raw", path) == blob.raw:
                return path
        return composed

    def _peek(self, kind: Kind, path: str) -> Entry | None:
        key = keys.note if kind == "note" else keys.file
        raw = self.register.overlay.get(key(self.register.source, path))
        return json.loads(raw) if raw else None

    def _entry(self, kind: Kind, path: str) -> Entry:
        entry = self._peek(kind, path)
        assert entry is not None, f"the index does not know {path!r}, which commit {self.delta.info.oid} changes"
        return entry

    # Notes

    def _match_stated(self, moves: dict[str, str], gone: dict[str, tuple[str, Entry]], added: Sequence[Blob]) -> None:
        """A note that was moved and rewritten is known by the id that its front matter states.

        One whose name only went from one Unicode form to the other, while it was rewritten, is known by its path.
        """
        left = {entry["id"]: raw for raw, (_, entry) in gone.items() if raw not in moves.values()}
        for blob in added:
            stated = self.delta.stated.get(blob.raw)
            if stated and blob.raw not in moves and (old := left.pop(stated, None)):
                moves[blob.raw] = old
        at_path = {gone[raw][0]: raw for raw in left.values()}
        for blob in added:
            if blob.raw not in moves and (old := at_path.pop(forms(blob.raw)[0], None)):
                moves[blob.raw] = old

    def _insert(self, blob: Blob) -> None:
        path = self._new_path(blob)
        identity = self.register.identify(path, self.delta.stated.get(blob.raw))
        entry: Entry = {"id": identity.note_id, "deleted": True}
        if identity.duplicate:
            entry["codes"] = [("duplicate-id", identity.duplicate)]
        elif blob.raw in self.delta.unusable:
            entry["codes"] = [("unusable-id", "")]
        self.born += 1
        self._put_note("I", path, None, entry, blob)

    def _put_note(self, kind: str, path: str, previous: str | None, before: Entry, blob: Blob) -> None:
        codes: Codes = [(code, detail) for code, detail in before.get("codes", ()) if code != "name-twin"]
        if path != forms(path)[0]:
            codes.append(("name-twin", ""))
        self._touch("note", before["id"], previous or path, before)
        entry = self._facts(kind, path, previous, blob)
        entry["id"] = before["id"]
        if codes:
            entry["codes"] = codes
        self.register.place(path, entry)
        self.notes.append(NoteRecord(kind, path, previous, before["id"], blob.oid, codes))

    def _delete(self, path: str, before: Entry) -> None:
        self._touch("note", before["id"], path, before)
        self.register.place(path, {**self._facts("D", path, None, None), "id": before["id"], "deleted": True})
        self.notes.append(NoteRecord("D", path, None, before["id"], None, []))
        self.born -= 1

    def _facts(self, kind: str, path: str, previous: str | None, blob: Blob | None) -> Entry:
        entry: dict[str, Any] = {
            "oid": blob.oid if blob else None,
            "ordinal": self.ordinal,
            "commit": self.delta.info.oid,
            "changed": self.changed_us,
            "kind": kind,
            "from": previous,
            "raw": blob.raw if blob and blob.raw != path else None,
        }
        return {name: fact for name, fact in entry.items() if fact is not None}

    def _touch(self, kind: Kind, name: str, path: str, entry: Entry | None) -> None:
        if self.touched:
            self.touched(kind, name, path, entry)

    # Other files

    def _apply_files(self) -> None:
        overlay, source = self.register.overlay, self.register.source
        for blob in self.delta.removed:
            if blob.kind == "media":
                path = self._path("media", blob.raw)
                self._touch("media", path, path, self._peek("media", path))
                overlay.put(keys.file(source, path), None)
                self.files.append(FileRecord("D", path, None))
        for kind, blobs in (("U", self.delta.modified), ("I", self.delta.added)):
            for blob in blobs:
                if blob.kind == "media":
                    path = self._path("media", blob.raw) if kind == "U" else self._new_path(blob)
                    self._touch("media", path, path, self._peek("media", path))
                    overlay.put(keys.file(source, path), dump(self._facts(kind, path, None, blob)))
                    self.files.append(FileRecord(kind, path, blob.oid))

    # Oddities

    def _odd(self, path: str, codes: Codes) -> None:
        """Remember what is odd about a path that is no note; a deleted note's entry there stays."""
        entry = self.register.entry(path) or {}
        before = [code for code, _ in entry.get("odd", ())]
        entry.pop("odd", None)
        if codes:
            entry["odd"] = codes
        self.register.put(path, entry or None)
        self.odd.append((path, before, codes))
