"""What tables need of the state: a lease that lets them write, and keys for marks, consumers and counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from pkm_pipelines.model.records import Mutation


class Lease(Protocol):
    """The right to write to a table."""

    def check(self) -> None:
        """Raise `LeaseLostError` if it is lost."""
        ...


class Registry(Protocol):
    """The state, as far as tables need it: copies of watermarks, who follows what, and how often tables are read."""

    def get(self, key: str) -> bytes | None:
        """The value of a key."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Set a key."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key."""
        ...

    def apply(self, mutations: Sequence[Mutation]) -> None:
        """Set and remove some keys: all of them or none."""
        ...

    def cas(self, key: str, expected: bytes | None, new: bytes | None) -> bool:
        """Set a key if its value is still as expected; whether it was."""
        ...

    def scan(self, prefix: str) -> Iterable[tuple[str, bytes]]:
        """The keys that begin so, in order."""
        ...
