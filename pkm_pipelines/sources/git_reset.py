"""Stepping the index of a git source back: after a rebase or force-push, or when it was made for other settings.

What was told about commits that are gone stays in bronze as it was observed. So each note that they touched, and
each that the new commits touch, is marked here and told again at the end (git_corrections.py), later than all before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice

from pkm_pipelines.model import keys
from pkm_pipelines.model.records import SourceBatch
from pkm_pipelines.sources.git_index import Index, Record, load_header
from pkm_pipelines.sources.identity import Entry
from pkm_pipelines.sources.overlay import dump
from pkm_pipelines.sources.repository import OID_BYTES

_KEYS_PER_BATCH = 1000


def common_length(index: Index, chain: bytes) -> int:
    """How many commits the index has in common with a chain that goes back to its first commit.

    Two first-parent chains that share a commit share all before it, at the same places, so this can be bisected.
    """
    low, high = 0, min(index.ordinal + 1, len(chain) // OID_BYTES)
    while low < high:
        middle = (low + high) // 2
        if index.header(middle).commit == chain[middle * OID_BYTES : (middle + 1) * OID_BYTES].hex():
            low = middle + 1
        else:
            high = middle
    return low


def truncate(index: Index, length: int) -> Iterator[SourceBatch]:
    """Step back until `length` commits are left, newest first; each batch leaves a whole, shorter index."""
    if length == 0:
        yield from clear(index)
        return
    index.begin_reset()
    while index.ordinal >= length:
        _step_back(index)
        if len(index.overlay) >= _KEYS_PER_BATCH:
            yield from index.batcher.flush()
    yield from index.batcher.flush()


def _step_back(index: Index) -> None:
    overlay, source, ordinal = index.overlay, index.source, index.ordinal
    value = overlay.get(keys.history(source, ordinal))
    assert value is not None
    record = Record.load(ordinal, value)
    for change in record.notes:
        holder = index.register.holder(change.note_id)
        entry = index.register.entry(holder["path"]) if holder else None
        index.mark("notes", change.note_id, change.path, entry)
    for change in record.files:
        raw = overlay.get(keys.file(source, change.path))
        index.mark("media", change.path, change.path, json.loads(raw) if raw else None)
    prefix = keys.notes(source)
    for key, before in (record.undo or {}).items():
        if key.startswith(prefix):
            raw = overlay.get(key)
            _tell_odd(index, key.removeprefix(prefix), raw, before.encode() if before is not None else None)
        overlay.put(key, before.encode() if before is not None else None)
    overlay.put(keys.history(source, ordinal), None)
    overlay.put(index.removed_key(record.header.commit), b"{}")
    index.set_tip(ordinal - 1, index.header(ordinal - 1))
    _limit_cursors(index)


def _tell_odd(index: Index, path: str, now: bytes | None, then: bytes | None) -> None:
    codes_now = [code for code, _ in json.loads(now).get("odd", ())] if now else []
    codes_then = json.loads(then).get("odd", ()) if then else []
    index.batcher.tell(path, codes_now, index.batcher.problems(path, codes_then))


def _limit_cursors(index: Index) -> None:
    """What notes and media were told up to is not beyond the index; a pass over all of them begins anew."""
    for content in ("notes", "media"):
        key = keys.cursor(f"{index.source}/{content}")
        raw = index.overlay.get(key)
        if raw is None:
            continue
        cursor = json.loads(raw)
        if "head" in cursor:
            cursor.update(head="", ordinal=index.ordinal)
        elif cursor["ordinal"] <= index.ordinal:
            continue
        else:
            cursor.update(ordinal=index.ordinal, offset=0)
        index.overlay.put(key, dump({**cursor, "sequence": cursor["sequence"] + 1}))


def clear(index: Index) -> Iterator[SourceBatch]:
    """Forget the whole index. A kill on the way leaves it marked as half cleared, and the next run goes on."""
    overlay, source = index.overlay, index.source
    index.begin_reset()
    overlay.cursor["clearing"] = True
    for content in ("notes", "media"):
        overlay.put(keys.cursor(f"{source}/{content}"), None)
    yield from index.batcher.flush()
    for prefix in (keys.notes(source), keys.files(source), keys.histories(source)):
        while found := list(islice(index.state.scan(prefix, limit=_KEYS_PER_BATCH), _KEYS_PER_BATCH)):
            for key, value in found:
                _forget(index, prefix, key, value)
            yield from index.batcher.flush()
    index.forget()
    yield from index.batcher.flush()


def _forget(index: Index, prefix: str, key: str, value: bytes) -> None:
    source, path = index.source, key.removeprefix(prefix)
    index.overlay.put(key, None)
    if prefix == keys.histories(source):
        index.overlay.put(index.removed_key(load_header(value).commit), b"{}")
        return
    entry: Entry = json.loads(value)
    if prefix == keys.files(source):
        index.mark("media", path, path, entry)
        return
    _tell_odd(index, path, value, None)
    if "id" in entry:
        index.mark("notes", entry["id"], entry.get("at", path), entry)
        index.overlay.put(keys.identity(entry["id"]), None)
