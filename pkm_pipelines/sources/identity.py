"""Which note a file is: ids that are fixed when a note first appears, and follow it wherever it goes.

Every note, alive or deleted, has one entry in the state under the path where it stands or last stood, and one
record under its id that says who has it. docs/decisions/0005-note-identity.md has the rules and why they are so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from pkm_pipelines.model import ids, keys
from pkm_pipelines.sources.overlay import Overlay, dump

HEAD_BYTES = 64 << 10
_FRONT_MATTER = re.compile(
    rb"(?:\xef\xbb\xbf)?---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE
)
_ID_LINE = re.compile(rb"""^(?:["']?id["']?[ \t]*:|[ \t]*\{)""", re.MULTILINE)
_USABLE_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "timestamp")}
_MAX_ID_LENGTH = 200
_MAX_DEPTH = 64
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()

Entry = dict[str, Any]


def is_current(entry: Entry) -> bool:
    """Whether an entry is of a note that its source has: no deleted one, and no mere memory of what is odd there."""
    return bool(entry.get("id")) and not entry.get("deleted")


class UnusableIdError(ValueError):
    """The front matter states an id that is no usable text or number."""


def stated_id(content: bytes) -> str | None:
    """The `id` that the front matter of a note states, as it is written there, or None.

    The scalar's text is taken and not its value, so that `0012` stays what it is (YAML 1.1 would make it 10).
    Broken YAML states nothing here; parsing lists it. Raises `UnusableIdError` for an id that is a list, a
    mapping, a boolean, over 200 characters or unprintable.
    """
    found = _FRONT_MATTER.match(content[:HEAD_BYTES])
    if not found or not _ID_LINE.search(found[1]):
        return None
    try:
        return _top_level_id(found[1].decode())
    except (yaml.YAMLError, UnicodeDecodeError):
        return None


def _top_level_id(front_matter: str) -> str | None:
    """The scalar under the key `id` of a YAML mapping.

    Reads events and builds nothing, so that a bomb of aliases costs no more than its text; deep nesting, over which
    libyaml takes quadratic time, ends it.
    """
    depth, is_key, is_id = 0, True, False
    for event in yaml.parse(front_matter, Loader=_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if depth == 1:
            if is_id:
                return _usable(event)
            is_id = is_key and isinstance(event, yaml.ScalarEvent) and event.value == "id"
            is_key = not is_key
        elif depth == 0 and not isinstance(event, yaml.MappingStartEvent):
            return None
        depth += isinstance(event, yaml.CollectionStartEvent)
        if depth > _MAX_DEPTH:
            return None
    return None


def _usable(event: yaml.NodeEvent) -> str | None:
    if not isinstance(event, yaml.ScalarEvent):
        raise UnusableIdError
    tag = event.tag or _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
    text = event.value.strip()
    if tag == "tag:yaml.org,2002:null":
        return None
    if tag not in _USABLE_TAGS or not 0 < len(text) <= _MAX_ID_LENGTH or not text.isprintable():
        raise UnusableIdError
    return text


@dataclass(frozen=True, slots=True)
class Identity:
    """The id of a note that appears. `revived` is its entry if it was deleted before, and `stood_at` the path of that.

    `duplicate` is the stated id that it could not have.
    """

    note_id: str
    revived: Entry | None = None
    stood_at: str | None = None
    duplicate: str | None = None


class Register:
    """Who is who in one source: entries by path and records by id, in an overlay of the state.

    An entry is a JSON object with at least `id`; `deleted` marks a note that is gone. An entry without `id`
    only remembers the problems of a path. The entry of a note whose path another note takes is *parked*
    under a path that no file can have ('/', then its id), with the real one in `at`.
    """

    def __init__(self, source: str, overlay: Overlay) -> None:
        self.source = source
        self.overlay = overlay

    def entry(self, path: str) -> Entry | None:
        """The entry at `path`."""
        raw = self.overlay.get(keys.note(self.source, path))
        return json.loads(raw) if raw else None

    def holder(self, note_id: str) -> Entry | None:
        """The record of who has `note_id`: `source` and `path`, and `births`, the notes first seen at its path."""
        raw = self.overlay.get(keys.identity(note_id))
        return json.loads(raw) if raw else None

    def holders(self, note_ids: Iterable[str]) -> dict[str, str]:
        """The paths of the entries of this source that have `note_ids`."""
        wanted = list(note_ids)
        self.overlay.prefetch(keys.identity(note_id) for note_id in wanted)
        found = {note_id: self.holder(note_id) for note_id in wanted}
        return {note_id: h["path"] for note_id, h in found.items() if h and h["source"] == self.source}

    def lookups(self, path: str, stated: str | None) -> list[str]:
        """The keys that `identify` will read, for `Overlay.prefetch`."""
        wanted = [keys.note(self.source, path), keys.identity(ids.note_id(self.source, path))]
        return [*wanted, keys.identity(stated)] if stated else wanted

    def remember_nothing(self, path: str) -> None:
        """A scan of the state has shown that there is no entry at `path`."""
        self.overlay.remember(keys.note(self.source, path), None)

    def identify(self, path: str, stated: str | None) -> Identity:
        """The id of a note that appears at `path`, and claims it.

        In this order: the id of a deleted note, if the front matter states it; the id of the note that was deleted
        at this path; the stated id, if nobody has it; an id made from the path.
        """
        duplicate: str | None = None
        holder = self.holder(stated) if stated else None
        if stated and holder:
            there = self.entry(holder["path"]) if holder["source"] == self.source else None
            if there and there.get("id") == stated and there.get("deleted"):
                return Identity(stated, there, holder["path"])
            duplicate = stated
        here = self.entry(path)
        if here and here.get("id") and here.get("deleted"):
            return Identity(here["id"], here, path, duplicate)
        if stated and not holder:
            return Identity(stated)
        return Identity(self._from_path(path), duplicate=duplicate)

    def _from_path(self, path: str) -> str:
        """An id made from `path` that nobody has: the n-th note that is born here has n in its name."""
        first = ids.note_id(self.source, path)
        record = self.holder(first)
        if record is None:
            return first
        births: int = record.get("births", 1)
        while self.holder(note_id := ids.note_id(self.source, f"{path}\0{births}")):
            births += 1
        self.overlay.put(keys.identity(first), dump({**record, "births": births + 1}))
        return note_id

    def place(self, path: str, entry: Entry) -> None:
        """Let `entry`'s note stand at `path`, and no more where it stood; another note's entry there is parked."""
        record = self.holder(entry["id"])
        if record and record["source"] == self.source and record["path"] != path:
            self._remove(record["path"], entry["id"])
        here = self.entry(path)
        if here and here.get("id") and here["id"] != entry["id"]:
            self._write(f"/{here['id']}", {**here, "at": path})
        self._write(path, entry)

    def vacate(self, path: str) -> None:
        """Take away the entry at `path`, whose note will be placed elsewhere."""
        self.overlay.put(keys.note(self.source, path), None)

    def _remove(self, path: str, note_id: str) -> None:
        here = self.entry(path)
        if here and here.get("id") == note_id:
            self.overlay.put(keys.note(self.source, path), None)

    def put(self, path: str, entry: Entry | None) -> None:
        """Write an entry that claims no id, or that changes nothing about who stands where."""
        self.overlay.put(keys.note(self.source, path), None if entry is None else dump(entry))

    def is_taken(self, note_id: str) -> bool:
        """Whether a living note of this source, or any note of another one, has `note_id`."""
        holder = self.holder(note_id)
        if holder is None:
            return False
        there = self.entry(holder["path"]) if holder["source"] == self.source else None
        return there is None or not there.get("deleted")

    def _write(self, path: str, entry: Entry) -> None:
        self.put(path, entry)
        record = self.holder(entry["id"])
        if record is None or record["path"] != path:
            births = {"births": record["births"]} if record and "births" in record else {}
            self.overlay.put(keys.identity(entry["id"]), dump({"source": self.source, "path": path, **births}))
