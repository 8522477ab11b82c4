"""What one commit did to notes and media: who was removed, added, edited or renamed.

Renames are looked for among notes only, in this order: equal content, of several the most similar path
(sources/moves.py); then what libgit2 finds at least 50 % similar; then an id that a new note's front matter states and
a removed note has.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

from pkm_pipelines.sources import oddities
from pkm_pipelines.sources.identity import UnusableIdError, stated_id
from pkm_pipelines.sources.moves import Place, pair
from pkm_pipelines.sources.repository import CommitInfo, GitRepository, MissingObjectError, Side, TreeDiff
from pkm_pipelines.sources.vault import Kind, Layout

# An id stands at the top of a note; a larger blob is not read for it.
_MAX_STATED_BYTES = 8 << 20
# PATH_MAX of Linux; a tree in git may hold any path.
_MAX_PATH_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Blob:
    """A file in a tree, its path as text (as it is there, perhaps not NFC)."""

    raw: str
    oid: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class OddPath:
    """A path in a tree that is no readable file of the vault, and why."""

    path: str
    code: str


@dataclass
class CommitDelta:
    """The net changes of one commit against its first parent."""

    info: CommitInfo
    removed: list[Blob] = field(default_factory=list[Blob])
    added: list[Blob] = field(default_factory=list[Blob])
    modified: list[Blob] = field(default_factory=list[Blob])
    odd_removed: list[OddPath] = field(default_factory=list[OddPath])
    odd_added: list[OddPath] = field(default_factory=list[OddPath])
    similar: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    stated: dict[str, str] = field(default_factory=dict[str, str])
    unusable: set[str] = field(default_factory=set[str])

    def moves(self) -> dict[str, str]:
        """New → old path (raw) of the notes that were renamed, by content and by similarity."""
        gone = [blob for blob in self.removed if blob.kind == "note"]
        come = [blob for blob in self.added if blob.kind == "note"]
        moves = pair((Place(b.raw, b.oid) for b in gone), (Place(b.raw, b.oid) for b in come))
        left = {blob.raw for blob in gone} - set(moves.values())
        fresh = {blob.raw for blob in come} - set(moves)
        for old, new in self.similar:
            if old in left and new in fresh:
                moves[new] = old
                left.discard(old)
                fresh.discard(new)
        return moves


def read_commit(repository: GitRepository, layout: Layout, parent: str | None, oid: str) -> CommitDelta:
    """Read what `oid` changed; raises `SourceError` if its trees are not in the repository."""
    delta = CommitDelta(repository.commit(oid))
    diff = repository.diff(parent, oid)
    for side in diff.removed:
        _sort(locate(side, layout), delta.removed, delta.odd_removed)
    for side in diff.added:
        _sort(locate(side, layout), delta.added, delta.odd_added)
    for _, side in diff.modified:
        _sort(locate(side, layout), delta.modified, [])
    delta.similar = _similar(delta, diff)
    for blob in delta.added:
        if blob.kind == "note":
            _read_stated(repository, blob, delta)
    return delta


def locate(side: Side, layout: Layout) -> Blob | OddPath | None:
    """What a path in a tree is to the vault; None if it is no content."""
    try:
        raw = side.path.decode()
    except UnicodeDecodeError:
        path = oddities.printable(side.path)
        return OddPath(path, "undecodable-name") if layout.shows(path) else None
    if len(side.path) > _MAX_PATH_BYTES:
        return OddPath(oddities.printable(side.path), "name-too-long") if layout.shows(raw) else None
    path = raw if raw.isascii() else unicodedata.normalize("NFC", raw)
    if not layout.shows(path):
        return None
    if side.mode != "file":
        return OddPath(path, "symlink" if side.mode == "link" else "submodule")
    if oddities.is_conflict_copy(path.rpartition("/")[2]):
        return OddPath(path, "conflict-copy")
    kind = layout.kind(path)
    return Blob(raw, side.oid, kind) if kind else None


def _sort(found: Blob | OddPath | None, blobs: list[Blob], odd: list[OddPath]) -> None:
    if isinstance(found, Blob):
        blobs.append(found)
    elif found is not None:
        odd.append(found)


def _similar(delta: CommitDelta, diff: TreeDiff) -> list[tuple[str, str]]:
    """Compare contents only if equal ones leave something to pair."""
    moves = delta.moves()
    gone = sum(blob.kind == "note" for blob in delta.removed) - len(moves)
    come = sum(blob.kind == "note" for blob in delta.added) - len(moves)
    if not gone or not come:
        return []
    return [(old.decode(errors="replace"), new.decode(errors="replace")) for old, new in diff.similar()]


def _read_stated(repository: GitRepository, blob: Blob, delta: CommitDelta) -> None:
    try:
        if repository.size(blob.oid) > _MAX_STATED_BYTES:
            return
        stated = stated_id(repository.read(blob.oid))
    except MissingObjectError:
        return  # told when its content is asked for
    except UnusableIdError:
        delta.unusable.add(blob.raw)
        return
    if stated:
        delta.stated[blob.raw] = stated
