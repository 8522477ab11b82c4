"""The simplest state there can be: a dictionary, scanned in key order. For tests of what only reads the state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pkm_pipelines.model.records import Mutation


class DictState:
    """Answers as `storage.slate_client.State` does, and counts how often it was asked."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.round_trips = 0

    def get(self, key: str) -> bytes | None:
        self.round_trips += 1
        return self.values.get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        self.round_trips += 1
        return {key: self.values[key] for key in keys if key in self.values}

    def scan(
        self, prefix: str, *, start_after: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[str, bytes]]:
        self.round_trips += 1
        found = sorted((key for key in self.values if key.startswith(prefix)), key=str.encode)
        if start_after is not None:
            found = [key for key in found if key.encode() > start_after.encode()]
        return iter([(key, self.values[key]) for key in found[:limit]])

    def put(self, key: str, value: bytes) -> None:
        self.apply([Mutation(key, value)])

    def delete(self, key: str) -> None:
        self.apply([Mutation(key, None)])

    def cas(self, key: str, expected: bytes | None, new: bytes | None) -> bool:
        """Set a key if its value is still as expected."""
        if self.values.get(key) != expected:
            return False
        self.apply([Mutation(key, new)])
        return True

    def apply(self, mutations: Iterable[Mutation]) -> None:
        """Write all of `mutations`; keys and values must be text, as those of the ingest's intents are."""
        for mutation in mutations:
            mutation.key.encode()
            if mutation.value is None:
                self.values.pop(mutation.key, None)
            else:
                mutation.value.decode()
                self.values[mutation.key] = mutation.value
