"""Telling again, after a branch was reset, what bronze has as it was before.

A note that a removed commit edited, and no new commit touched, would stay as the removed commit left it: its change
is the newest there is. The same holds for a commit that was removed once and comes back, because its changes are in
bronze already and are not appended twice. So every note that was touched on either side is compared with how it was
told last, and told again if it is another, with a time after all that were ever told.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from pkm_pipelines.model import keys
from pkm_pipelines.model.records import SourceBatch
from pkm_pipelines.sources.batches import Batcher
from pkm_pipelines.sources.git_feed import Feed, Told, of_entry
from pkm_pipelines.sources.git_index import Index
from pkm_pipelines.sources.identity import Entry

_MARKS = 1000


def has_corrections(index: Index, content: str) -> bool:
    """Whether anything waits to be told again."""
    return next(index.state.scan(_prefix(index, content), limit=1), None) is not None


def correct(index: Index, feed: Feed, batcher: Batcher, now: dt.datetime) -> Iterator[SourceBatch]:
    """Tell again what must be, and drop the marks; `batcher` writes through the index's overlay."""
    prefix = _prefix(index, feed.content)

    def look(path: str) -> Entry | None:
        raw = index.overlay.get(feed.key(path))
        return json.loads(raw) if raw else None

    time_us = index.high_us + 1
    while marks := list(islice(index.state.scan(prefix, limit=_MARKS), _MARKS)):
        index.overlay.cursor["high"] = time_us
        names = [key.removeprefix(prefix) for key, _ in marks]
        paths = index.register.holders(names) if feed.content == "notes" else dict(zip(names, names, strict=True))
        index.overlay.prefetch(feed.key(path) for path in paths.values())
        for (key, value), name in zip(marks, names, strict=True):
            path = paths.get(name)
            told = _correction(index, json.loads(value), name, path, look(path) if path is not None else None)
            if told:
                told = replace(told, changed_us=time_us, correction=f"{name}@{index.commit}@{time_us}", day=now.date())
                yield from batcher.room_for(feed.size(told))
                feed.tell(batcher, told, look)
            index.overlay.put(key, None)
        yield from batcher.flush()


def _prefix(index: Index, content: str) -> str:
    return keys.corrections(index.source if content == "notes" else f"{index.source}/media")


def _correction(index: Index, mark: dict[str, Any], name: str, path: str | None, entry: Entry | None) -> Told | None:
    is_alive = path is not None and entry is not None and "oid" in entry
    if not is_alive:
        if not mark["alive"] and not mark["force"]:
            return None
        return Told("D", name, mark["path"], None, None, index.commit or "", index.ordinal, 0, [])
    assert path is not None
    assert entry is not None
    is_same = path == mark["path"] and all(entry[fact] == mark[fact] for fact in ("oid", "commit", "changed"))
    if is_same and not mark["force"]:
        return None
    previous = mark["path"] if mark["alive"] and mark["path"] != path else None
    kind = "U" if mark["alive"] else "I"
    return replace(of_entry(path, entry), kind=kind, previous=previous, ordinal=index.ordinal)
