"""Random lives of tables: every operation, on every kind of table, with stores that fail and processes that die.

After each step every new snapshot is read and compared with what a dictionary says that it must hold. In the end all
snapshots that are left are read again, and the changes from each of them rebuild the present.

`PKM_TEST_STEPS` is how many steps are made, `PKM_TEST_SEED` where chance begins; the seed is printed.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pkm_pipelines.model.evolution import AddColumn, DropColumn, Evolution, PartitionBy, PromoteColumn, RenameColumn
from pkm_pipelines.storage.iceberg_history import ancestors
from pkm_pipelines.storage.iceberg_schema import TABLE_MODES, TableMode
from tests.support.faults import FAULTS, Trouble
from tests.support.iceberg import local_place
from tests.support.table_history import Operation
from tests.support.table_life import MEMORY_BYTES, TableLife, hurry
from tests.support.table_operations import BESIDE_WRITERS, KINDS, MAINTENANCE, maintenance

STEPS = {1: 1_000, 3: 10_000, 20: 50_000}
STEPS_PER_LIFE = 25
SIDE = "side"
EXTRA = ("extra", "other")

# What goes wrong during a step: at which of its store calls, and how.
CALLS = st.sampled_from([*range(16), *range(16, 40, 3), "open", "create", "close", "load", "commit", "delete"])
TROUBLE = st.dictionaries(CALLS, st.sampled_from(FAULTS), max_size=3)


class Life(RuleBasedStateMachine):
    """One table, and everything that can happen to it."""

    root: ClassVar[Path]
    happened: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.root))
        self.life: TableLife | None = None

    @initialize(kind=st.sampled_from(sorted(KINDS)), mode=st.sampled_from(TABLE_MODES), is_tight=st.booleans())
    def create(self, kind: str, mode: TableMode, is_tight: bool) -> None:
        """`is_tight`: so little memory that every delta goes through files on its way."""
        memory = 2000 if is_tight else MEMORY_BYTES
        self.life = TableLife(local_place(self.folder), KINDS[kind], memory_bytes=memory)
        self.life.judge.set_mode(self.life.name, mode)

    def teardown(self) -> None:
        try:
            if self.life is not None:
                self.life.check_everything()
                self.life.restart()
                self.happened.update(self.life.happened)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def table(self) -> TableLife:
        assert self.life is not None
        return self.life

    @property
    def has_snapshots(self) -> bool:
        return bool(self.table.snapshots())

    @rule(data=st.data(), trouble=TROUBLE)
    def write(self, data: st.DataObject, trouble: Trouble) -> None:
        self.table.perform(self.draw(data), trouble)

    @rule(data=st.data(), at=CALLS)
    def write_while_another_writes(self, data: st.DataObject, at: int | str) -> None:
        mine, theirs = self.draw(data), self.draw(data)
        self.table.perform(mine, {at: lambda: self.table.rival(theirs)})

    @rule(data=st.data(), trouble=TROUBLE)
    def maintain(self, data: st.DataObject, trouble: Trouble) -> None:
        self.table.perform(self.draw_maintenance(data, MAINTENANCE), trouble)

    @rule(data=st.data(), at=CALLS, writer_first=st.booleans())
    def maintain_while_another_writes(self, data: st.DataObject, at: int | str, writer_first: bool) -> None:
        one, other = self.draw(data), self.draw_maintenance(data, BESIDE_WRITERS)
        if not writer_first:
            one, other = other, one
        self.table.perform(one, {at: lambda: self.table.rival(other)})

    @precondition(lambda self: self.has_snapshots)
    @rule(data=st.data(), trouble=TROUBLE)
    def roll_back(self, data: st.DataObject, trouble: Trouble) -> None:
        table = self.table
        target = data.draw(st.sampled_from([version.snapshot_id for version in table.judge.history(table.name)]))
        before = table.judge.iceberg.snapshot_id(table.name)
        acknowledged = table.attempt(lambda: table.tables.rollback(table.name, target), trouble)
        now = table.judge.iceberg.snapshot_id(table.name)
        assert now == target if acknowledged else now in (target, before)
        table.check()

    @precondition(lambda self: self.has_snapshots)
    @rule(data=st.data(), trouble=TROUBLE, tag=st.sampled_from(["one", "two"]))
    def tag(self, data: st.DataObject, trouble: Trouble, tag: str) -> None:
        table = self.table
        target = data.draw(st.none() | st.sampled_from(table.snapshots()))
        before = table.judge.tags(table.name).get(tag)

        def change() -> None:
            if target is None:
                table.tables.untag(table.name, tag)
            else:
                table.tables.tag(table.name, tag, target)

        acknowledged = table.attempt(change, trouble)
        now = table.judge.tags(table.name).get(tag)
        assert now == target if acknowledged else now in (target, before)

    @rule(data=st.data(), trouble=TROUBLE)
    def work_on_a_branch(self, data: st.DataObject, trouble: Trouble) -> None:
        table = self.table
        if SIDE not in table.judge.branches(table.name):
            if not self.has_snapshots:
                return
            table.judge.branch(table.name, SIDE, data.draw(st.sampled_from(table.snapshots())))
        table.perform(self.draw(data), trouble, SIDE)

    @rule(trouble=TROUBLE)
    def publish_the_branch(self, trouble: Trouble) -> None:
        table = self.table
        branches = table.judge.branches(table.name)
        if SIDE not in branches:
            return
        main, head = table.judge.iceberg.snapshot_id(table.name), branches[SIDE]
        line = [snapshot.snapshot_id for snapshot in ancestors(table.judge.iceberg.load(table.name), head)]
        acknowledged = table.attempt(lambda: table.tables.publish(table.name, SIDE), trouble)
        now = table.judge.iceberg.snapshot_id(table.name)
        if main is not None and main not in line:
            assert not acknowledged
            assert now == main, "a commit of main was lost"
        else:
            assert now == head if acknowledged else now in (head, main)
        table.check()

    @rule(trouble=TROUBLE)
    def drop_the_branch(self, trouble: Trouble) -> None:
        table = self.table
        if SIDE in table.judge.branches(table.name):
            acknowledged = table.attempt(lambda: table.tables.drop_branch(table.name, SIDE) or True, trouble)
            assert not acknowledged or SIDE not in table.judge.branches(table.name)
            table.check()

    @rule(mode=st.sampled_from(TABLE_MODES), trouble=TROUBLE)
    def set_mode(self, mode: TableMode, trouble: Trouble) -> None:
        table = self.table
        table.attempt(lambda: table.tables.set_mode(table.name, mode), trouble)
        table.check()

    @rule(data=st.data(), trouble=TROUBLE)
    def change_columns(self, data: st.DataObject, trouble: Trouble) -> None:
        """A column comes, gets another name or a wider type, and goes."""
        table = self.table
        name = next(iter(table.history.added_columns), None)
        change, wanted = data.draw(st.sampled_from(_changes(name)))
        acknowledged = table.attempt(lambda: table.tables.evolve(table.name, change), trouble)
        schema = table.judge.iceberg.load(table.name).schema()
        now = next((one for one in EXTRA if one in schema.column_names), None)
        assert now == wanted if acknowledged else now in (name, wanted)
        if acknowledged and isinstance(change, PromoteColumn):
            assert str(schema.find_type(change.name)) == "long"
        if now != name:
            if name is not None:
                table.history.drop_column(name)
            if now is not None:
                table.history.add_column(now)
        table.check()

    @rule(data=st.data(), trouble=TROUBLE)
    def partition_in_another_way(self, data: st.DataObject, trouble: Trouble) -> None:
        table = self.table
        fields = data.draw(st.sampled_from(table.kind.partitions))
        table.attempt(lambda: table.tables.evolve(table.name, PartitionBy(fields)), trouble)
        table.check()

    @rule(data=st.data(), at=CALLS, mode=st.none() | st.sampled_from(TABLE_MODES))
    def write_while_the_table_is_changed(self, data: st.DataObject, at: int | str, mode: TableMode | None) -> None:
        """Another process sets another mode, or other partitions, between two store calls of a write."""
        table = self.table
        operation = self.draw(data)
        fields = data.draw(st.sampled_from(table.kind.partitions))

        def change() -> None:
            if mode is None:
                table.judge.evolve(table.name, PartitionBy(fields))
            else:
                table.judge.set_mode(table.name, mode)

        table.perform(operation, {at: change})

    @precondition(lambda self: self.has_snapshots)
    @rule(trouble=TROUBLE)
    def follow(self, trouble: Trouble) -> None:
        self.table.follow(trouble)

    @precondition(lambda self: self.has_snapshots)
    @rule(data=st.data())
    def follow_changes(self, data: st.DataObject) -> None:
        known = self.table.snapshots()
        since, until = data.draw(st.sampled_from([None, *known])), data.draw(st.sampled_from(known))
        self.table.check_changes(since, until)

    @invariant()
    def count(self) -> None:
        self.happened["steps"] += 1

    def draw(self, data: st.DataObject) -> Operation:
        return data.draw(self.table.kind.operations(self.table.spec, self.table.rows()))

    def draw_maintenance(self, data: st.DataObject, names: Sequence[str]) -> Operation:
        return data.draw(maintenance(self.table.spec, self.table.state, names))


def _changes(name: str | None) -> list[tuple[Evolution, str | None]]:
    """What can become of the column that is not the table's own, if it has one, and its name from then on."""
    if name is None:
        return [(AddColumn(EXTRA[0], pa.int32()), EXTRA[0])]
    other = EXTRA[1 - EXTRA.index(name)]
    return [(RenameColumn(name, other), other), (PromoteColumn(name, pa.int64()), name), (DropColumn(name), None)]


@pytest.mark.timeout(0)
def test_tables_live_as_dictionaries_do(ram_folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    steps = int(os.environ.get("PKM_TEST_STEPS") or STEPS[budget])
    start = int(os.environ.get("PKM_TEST_SEED") or random.SystemRandom().getrandbits(32))
    print(f"PKM_TEST_SEED={start} PKM_TEST_STEPS={steps}")
    happened = Counter[str]()
    while happened["steps"] < steps:
        machine: Any = seed(start + happened["steps"])(
            type("Life", (Life,), {"root": ram_folder, "happened": happened})
        )
        lives = (steps - happened["steps"]) // STEPS_PER_LIFE + 1
        run_state_machine_as_test(
            machine, settings=settings(max_examples=lives, stateful_step_count=STEPS_PER_LIFE, database=None)
        )
    print(f"{happened['steps']} steps: {happened}")
    if steps >= 1_000:
        assert {*FAULTS, "rival", "copy-on-write", "merge-on-read"} <= happened.keys(), "something never happened"
