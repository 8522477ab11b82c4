"""Whatever is done to the state in whatever order, it holds what a dictionary would."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pkm_pipelines.model.records import Mutation
from pkm_pipelines.storage.slate_client import State
from tests.support.state import SharedState, services

KEYS = st.sampled_from(["n", "note:", "note:a", "note:a:1", "note:a:10", "note:a:2", "note:b", "note;", "é", "🌱:1"])
PREFIXES = st.sampled_from(["", "n", "note:", "note:a", "note:a:", "é", "z", "🌱"])
VALUES = st.binary(max_size=20)
SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck), stateful_step_count=25, print_blob=True)


class StateMachine(RuleBasedStateMachine):
    """The state beside its model."""

    def __init__(self, state: State, runtime_dir: Path) -> None:
        super().__init__()
        self.state = state
        self.runtime_dir = runtime_dir
        self.model: dict[str, bytes] = {}
        self.last_lsn = 0

    @initialize()
    def begin(self) -> None:
        self.state.clear("")

    @rule(key=KEYS, value=VALUES)
    def put(self, key: str, value: bytes) -> None:
        self.state.put(key, value)
        self.model[key] = value

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.state.delete(key)
        self.model.pop(key, None)

    @rule(key=KEYS, expected=st.none() | VALUES, new=st.none() | VALUES, hit=st.booleans())
    def cas(self, key: str, expected: bytes | None, new: bytes | None, hit: bool) -> None:
        expected = self.model.get(key) if hit else expected
        assert self.state.cas(key, expected, new) == (self.model.get(key) == expected)
        if self.model.get(key) == expected:
            self.write(key, new)

    @rule(rows=st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=6))
    def apply(self, rows: list[tuple[str, bytes | None]]) -> None:
        self.state.apply([Mutation(*row) for row in rows])
        for row in rows:
            self.write(*row)

    @rule(prefix=PREFIXES)
    def clear(self, prefix: str) -> None:
        gone = [key for key in self.model if key.startswith(prefix)]
        assert self.state.clear(prefix) == len(gone)
        for key in gone:
            del self.model[key]

    @rule(keys=st.lists(KEYS, max_size=4))
    def read(self, keys: list[str]) -> None:
        assert self.state.get_many(keys) == {key: self.model[key] for key in keys if key in self.model}
        for key in keys:
            assert self.state.get(key) == self.model.get(key)

    @rule(prefix=PREFIXES, start_after=st.none() | KEYS, limit=st.none() | st.integers(0, 4))
    def scan(self, prefix: str, start_after: str | None, limit: int | None) -> None:
        rows = sorted((key, value) for key, value in self.model.items() if key.startswith(prefix))
        rows = [row for row in rows if start_after is None or row[0] > start_after]
        assert list(self.state.scan(prefix, start_after=start_after, limit=limit)) == rows[:limit]

    @rule(count=st.integers(1, 5))
    def lsns(self, count: int) -> None:
        lsns = self.state.next_lsns(count)
        assert len(lsns) == count
        assert lsns.start > self.last_lsn
        self.last_lsn = lsns[-1]

    @rule(how=st.sampled_from([signal.SIGKILL, signal.SIGTERM]))
    def end_the_service(self, how: signal.Signals) -> None:
        for pid in services(self.runtime_dir):
            os.kill(pid, how)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert dict(self.state.scan("")) == self.model

    def write(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.model.pop(key, None)
        else:
            self.model[key] = value


def test_it_holds_what_a_dictionary_would(shared_state: SharedState, budget: int) -> None:
    run_state_machine_as_test(
        lambda: StateMachine(shared_state.state, shared_state.runtime_dir),
        settings=settings(SETTINGS, max_examples=6 * budget),
    )
