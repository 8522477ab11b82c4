"""Which note that is gone from one path is the one that has come to another: renames by content.

git does the same for exact renames (gitdiffcore(7)): equal content, and of several candidates the one whose
path is most alike. Both sources pair with this, so that a vault has the same renames in either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

# Beyond this many pairs of one content (empty notes, mostly), only equal file names are paired.
_MAX_COMPARED = 10_000


@dataclass(frozen=True, slots=True)
class Place:
    """A path with its content's hash, and the inode there, if known: a file that is moved keeps its own."""

    path: str
    hash: str
    inode: int | None = None


def pair(gone: Iterable[Place], come: Iterable[Place]) -> dict[str, str]:
    """New path → old path of the notes that moved.

    Within one content: first the same inode, then the most similar path, ties in path order.
    """
    old_by_hash: dict[str, list[Place]] = defaultdict(list)
    for place in gone:
        old_by_hash[place.hash].append(place)
    new_by_hash: dict[str, list[Place]] = defaultdict(list)
    for place in come:
        if place.hash in old_by_hash:
            new_by_hash[place.hash].append(place)
    moves: dict[str, str] = {}
    for content, new in new_by_hash.items():
        moves.update(_pair_equal(old_by_hash[content], new))
    return moves


def _pair_equal(old: list[Place], new: list[Place]) -> dict[str, str]:
    if len(old) == len(new) == 1:
        return {new[0].path: old[0].path}
    if len(old) * len(new) <= _MAX_COMPARED:
        candidates = [(_likeness(before, after), before.path, after.path) for before in old for after in new]
    else:
        candidates = list(_same_names(old, new))
    moves: dict[str, str] = {}
    taken: set[str] = set()
    for _, before, after in sorted(candidates, key=lambda c: (tuple(-part for part in c[0]), c[2], c[1])):
        if before not in taken and after not in moves:
            moves[after] = before
            taken.add(before)
    return moves


def _likeness(old: Place, new: Place) -> tuple[float, ...]:
    """Same inode, then same file name, then the ratio of matching characters (Ratcliff and Obershelp)."""
    same_inode = old.inode is not None and old.inode == new.inode
    return same_inode, _name(old) == _name(new), SequenceMatcher(None, old.path, new.path, autojunk=False).ratio()


def _same_names(old: list[Place], new: list[Place]) -> Iterable[tuple[tuple[float, ...], str, str]]:
    by_name: dict[str, list[Place]] = defaultdict(list)
    for place in sorted(old, key=lambda place: place.path):
        by_name[_name(place)].append(place)
    for after in sorted(new, key=lambda place: place.path):
        if by_name[_name(after)]:
            yield (1.0,), by_name[_name(after)].pop(0).path, after.path


def _name(place: Place) -> str:
    return place.path.rpartition("/")[2]
