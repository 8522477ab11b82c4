"""Which notes the sources have now, which of them a table lacks, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from pkm_pipelines.model import keys
from pkm_pipelines.model.tables import PROCESSED_NOTES, RAW_NOTES
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.sources.identity import is_current


@dataclass(frozen=True)
class Lack:
    """A note that a table lacks. It is `odd` if its source could not give it: then `why` is what is odd about it."""

    source: str
    path: str
    why: str
    odd: bool = False

    def __str__(self) -> str:
        return f"{self.source}: {self.path}: {self.why}"


def current_notes(stores: Stores, source: str) -> Iterator[tuple[str, str]]:
    """Path and id of each note that the source has, as far as it has been read."""
    for path, note_id in _paths(stores, source):
        if note_id is not None:
            yield path, note_id


def lacking_in_silver(stores: Stores, present: set[tuple[str, str]], in_bronze: set[str]) -> Iterator[Lack]:
    """The current notes whose (source, path) is not `present`, and files that would be notes if they were not odd.

    `in_bronze` are the ids of the notes of which bronze has changes.
    """
    is_behind = not _has_read(stores, RAW_NOTES.name, stores.tables.watermark(PROCESSED_NOTES.name, RAW_NOTES.name))
    for source in (source.name for source in stores.settings.sources):
        odd = _oddities(stores, source)
        for path, note_id in _paths(stores, source):
            if note_id is None:
                if path in odd:
                    yield Lack(source, path, odd[path], odd=True)
            elif (source, path) in present:
                continue
            elif note_id not in in_bronze:
                yield Lack(source, path, odd.get(path) or "not read yet: bronze has no change of it", odd=path in odd)
            elif is_behind:
                yield Lack(source, path, f"not parsed yet: silver has not read {RAW_NOTES.name} to its end")
            else:
                yield Lack(source, path, f"lost: silver has read {RAW_NOTES.name} to its end and does not have it")


def why_not_embedded(stores: Stores, table: str) -> str:
    """Why a note that is alive in silver has no chunk in `table`."""
    mark = stores.vectors.watermark(table, PROCESSED_NOTES.name) if stores.vectors.exists(table) else None
    if not _has_read(stores, PROCESSED_NOTES.name, mark):
        return f"not embedded yet: the vectors have not read {PROCESSED_NOTES.name} to its end"
    return f"lost: the vectors have read {PROCESSED_NOTES.name} to its end and do not have it"


def _paths(stores: Stores, source: str) -> Iterator[tuple[str, str | None]]:
    """Path and id of each entry of a source's notes; the id is None where there is no note (any more)."""
    prefix = keys.notes(source)
    for key, value in stores.state.scan(prefix):
        entry = json.loads(value)
        yield entry.get("at") or key.removeprefix(prefix), entry["id"] if is_current(entry) else None


def _oddities(stores: Stores, source: str) -> dict[str, str]:
    """What is odd about files of a source, by path."""
    prefix = keys.problems(source)
    return {
        key.removeprefix(prefix): "; ".join(f"{item['code']} ({item['message']})" for item in json.loads(value))
        for key, value in stores.state.scan(prefix)
    }


def _has_read(stores: Stores, table: str, mark: int | None) -> bool:
    return mark is not None and stores.tables.is_unchanged_since(table, mark)
