"""Which notes of a folder moved between two scans, also when another note took their path.

A note that is gone moved to where its content has come (sources/moves.py). A note whose path still exists but with
other content is taken to have been edited, unless

- the file there now is, by inode and content, that of another note that left its path (`mv b.md a.md`), or
- its content has come elsewhere, and the file there has its inode (a file that is moved keeps it, a copy does not)
  or its path is taken by the content of another note that left (a swap, a rotation).

So a note that is copied and then edited stays the note, and the copy is a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pkm_pipelines.sources import files
from pkm_pipelines.sources.identity import HEAD_BYTES, UnusableIdError, stated_id
from pkm_pipelines.sources.moves import Place, pair
from pkm_pipelines.sources.scan import Appeared, Known, Suspect, Vanished
from pkm_pipelines.sources.vault import File


@dataclass
class Moves:
    """What was found: `origins` maps the new path of a note to its old path and entry.

    `replaced` are the paths of suspects where another note stands now; `gone` is what vanished for good.
    """

    origins: dict[str, tuple[str, Known]] = field(default_factory=dict[str, tuple[str, Known]])
    replaced: set[str] = field(default_factory=set[str])
    gone: list[Vanished] = field(default_factory=list[Vanished])


def find_moves(
    vanished: Sequence[Vanished],
    appeared: Sequence[Appeared],
    suspects: Sequence[Suspect],
    max_bytes: int,
    holders: Callable[[Iterable[str]], dict[str, str]],
) -> Moves:
    """Pair what is gone with what has come.

    Only files whose size is that of something gone are read here, and only hashed. `holders` tells the paths of the
    entries that have stated ids: a note that was moved *and* edited is recognised by the id in its front matter.
    """
    old = {v.path: Place(v.path, v.known.hash or "", v.known.inode) for v in vanished}
    changed: dict[str, Place] = {}  # suspects' old contents
    come: dict[str, Place] = {}
    if not vanished and (not suspects or len(suspects) + len(appeared) < 2):
        return Moves()
    sizes = {entry.known.mark[0] if entry.known.mark else None for entry in (*vanished, *suspects)}
    for item in (*appeared, *suspects):
        # The size is not known of notes whose entries were rebuilt from the tables.
        is_candidate = None in sizes or item.file.stat.st_size in sizes
        here = _place(item.file, max_bytes) if is_candidate else None
        if isinstance(item, Suspect) and not (here and here.hash == item.known.hash):
            changed[item.path] = Place(item.path, item.known.hash or "", item.known.inode)
        if here and not (isinstance(item, Suspect) and here.hash == item.known.hash):
            come[item.path] = here
    leaving = _leaving(old, changed, come)
    settled = {path: place for path, place in come.items() if path in leaving or path not in changed}
    paired = pair([*old.values(), *(changed[path] for path in leaving)], settled.values())
    entries = {item.path: item.known for item in (*vanished, *suspects)}
    moves = Moves(origins={new: (before, entries[before]) for new, before in paired.items()})
    moved = set(paired.values())
    moves.replaced = {path for path in leaving if path in moved or path in paired}
    lost = [Vanished(path, entries[path]) for path in sorted(leaving) if path in paired and path not in moved]
    moves.gone = [v for v in (*vanished, *lost) if v.path not in moved]
    _match_stated(moves, [a for a in appeared if a.path not in paired], holders)
    return moves


def _place(file: File, max_bytes: int) -> Place | None:
    try:
        read = files.read(file.location, max_bytes=max_bytes, keep=False)
    except (OSError, files.ChangingError, files.TooLargeError):
        return None  # reading it for good will say so
    return Place(file.path, read.hash, file.stat.st_ino)


def _leaving(old: dict[str, Place], changed: dict[str, Place], come: dict[str, Place]) -> set[str]:
    """The changed paths whose note has left: the largest set for which that can be said of each."""
    leaving = set(changed)
    while True:
        homes: dict[str, list[Place]] = {}
        for path, place in come.items():
            if path in leaving or path not in changed:
                homes.setdefault(place.hash, []).append(place)
        gone = [*old.values(), *(changed[path] for path in leaving)]
        contents = {place.hash for place in gone}
        files_gone = {(place.hash, place.inode) for place in gone if place.inode}

        staying: set[str] = set()
        for path in leaving:
            here, found = come.get(path), homes.get(changed[path].hash, [])
            is_replaced = here is not None and (here.hash, here.inode) in files_gone
            is_moved = any(place.inode and place.inode == changed[path].inode for place in found)
            is_swapped = bool(found) and here is not None and here.hash in contents
            if not (is_replaced or is_moved or is_swapped):
                staying.add(path)
        if not staying:
            return leaving
        leaving -= staying


def _match_stated(
    moves: Moves, appeared: Sequence[Appeared], holders: Callable[[Iterable[str]], dict[str, str]]
) -> None:
    """Recognise moved and edited notes by the id that their front matter states and the state knows as gone."""
    by_path = {v.path: v for v in moves.gone}
    stated: dict[str, str] = {}
    for item in appeared if by_path else ():
        try:
            note_id = stated_id(files.head(item.file.location, HEAD_BYTES))
        except (OSError, UnusableIdError):
            continue  # reading it for good will say so
        if note_id:
            stated[item.path] = note_id
    paths = holders(stated.values()) if stated else {}
    for path, note_id in stated.items():
        if found := by_path.pop(paths.get(note_id, ""), None):
            moves.origins[path] = (found.path, found.known)
    moves.gone = [v for v in moves.gone if v.path in by_path]
