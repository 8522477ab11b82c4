"""The state as it will be once the batch being built is applied: reads go through to the state, writes are kept.

Point reads cost a round trip to the state service each, so callers name what they will need with `prefetch`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pkm_pipelines.model.errors import SourceError
from pkm_pipelines.model.records import Mutation
from pkm_pipelines.sources.base import StateReader

_CACHED_KEYS = 20_000


class Overlay:
    """Pending writes over a state, and the cursor that each batch of them moves.

    The cursor is a JSON object under `cursor_key`; its `sequence` counts batches. That makes the fingerprint of a
    source move with each, and shows whether the mutations of the last batch were applied.
    """

    def __init__(self, state: StateReader, cursor_key: str) -> None:
        self.state = state
        self._cursor_key = cursor_key
        self._cache: dict[str, bytes | None] = {}
        self._pending: dict[str, bytes | None] = {}
        self._journal: dict[str, bytes | None] | None = None
        self._sequence = 0
        self._saved = b""
        self.cursor: dict[str, Any] = {}
        self.reload()

    def reload(self) -> None:
        """Read the cursor (again)."""
        raw = self.state.get(self._cursor_key)
        self.cursor = json.loads(raw) if raw else {}
        self._sequence = self.cursor.pop("sequence", 0)
        self._saved = dump(self.cursor)

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever read through this cursor."""
        return self._sequence == 0

    @property
    def has_writes(self) -> bool:
        """Whether there is anything to write: a key, or a cursor that moved."""
        return bool(self._pending) or dump(self.cursor) != self._saved

    def __len__(self) -> int:
        return len(self._pending)

    def __bool__(self) -> bool:
        return True

    def get(self, key: str) -> bytes | None:
        """The value of `key` as it will be."""
        if key in self._pending:
            return self._pending[key]
        if key not in self._cache:
            self._cache[key] = self.state.get(key)
        return self._cache[key]

    def prefetch(self, keys: Iterable[str]) -> None:
        """Read those of `keys` that are not known yet in one round trip."""
        if len(self._cache) > _CACHED_KEYS:
            self._cache.clear()
        wanted = [key for key in dict.fromkeys(keys) if key not in self._cache and key not in self._pending]
        if wanted:
            found = self.state.get_many(wanted)
            self._cache.update((key, found.get(key)) for key in wanted)

    def remember(self, key: str, value: bytes | None) -> None:
        """Take note of what a scan has read."""
        self._cache[key] = value

    def put(self, key: str, value: bytes | None) -> None:
        """Write `value` under `key`; None deletes it."""
        if self._journal is not None and key not in self._journal:
            self._journal[key] = self.get(key)
        self._pending[key] = value

    def begin_journal(self) -> None:
        """From here on, keep what each key held before it is first written."""
        self._journal = {}

    def end_journal(self) -> dict[str, bytes | None]:
        """What the keys that were written since `begin_journal` held before."""
        journal, self._journal = self._journal, None
        return journal or {}

    def take(self) -> tuple[Mutation, ...]:
        """The pending writes and the moved cursor, to be handed out with a batch."""
        self._sequence += 1
        cursor = dump({**self.cursor, "sequence": self._sequence})
        self._saved = dump(self.cursor)
        self._cache.update(self._pending)
        mutations = [Mutation(key, value) for key, value in self._pending.items()]
        self._pending.clear()
        return (*mutations, Mutation(self._cursor_key, cursor))

    def confirm(self) -> None:
        """Raise `SourceError` unless the mutations of the last `take` were applied."""
        raw = self.state.get(self._cursor_key)
        if (json.loads(raw)["sequence"] if raw else 0) != self._sequence:
            raise SourceError(
                f"{self._cursor_key}: the state does not hold the last batch of this source; its mutations must be "
                "applied before the next batch is asked for, and only one run may read a source at a time"
            )


def dump(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
