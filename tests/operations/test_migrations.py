"""Migrations: a table of an old format becomes one of the new one, once, also when it is killed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pkm_pipelines.model.errors import StoreError, TableNotFoundError
from pkm_pipelines.model.evolution import AddColumn
from pkm_pipelines.model.schema import Column
from pkm_pipelines.model.tables import ICEBERG_TABLES
from pkm_pipelines.operations import migrations
from pkm_pipelines.operations.doctor import doctor
from pkm_pipelines.operations.migrations import (
    PROJECT,
    Migration,
    Registry,
    Step,
    format_of,
    migrate,
    plan_migrations,
)
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.iceberg_schema import next_field_id
from tests.support.iceberg import LOG, STATE, Place, contents, local_place, thing, write
from tests.support.warehouses import lakehouse

OLD = STATE
NEW = replace(
    STATE, columns=(*STATE.columns, Column(next_field_id(STATE), "note", pa.string(), "A note")), format_version=3
)
CALLS: list[str] = []


class KilledError(Exception):
    """The process ended here."""


def double_values(step: Step) -> None:
    """Values were halves."""
    CALLS.append("double_values")

    def change(batch: pa.RecordBatch) -> pa.RecordBatch:
        position = batch.schema.get_field_index("value")
        return batch.set_column(position, batch.schema.field(position), pc.multiply(batch["value"], 2))

    step.rewrite(change)
    step.save({"rewritten": True})


def add_note(step: Step) -> None:
    """Things have a note."""
    CALLS.append("add_note")
    if "note" not in step.columns:
        step.evolve(AddColumn("note", pa.string(), "A note"))


REGISTRY = Registry(
    (NEW,),
    (
        Migration(STATE.name, 2, "things have a note", add_note),
        Migration(STATE.name, 1, "values double", double_values),
    ),
)


@pytest.fixture
def stores(work: Path) -> Iterator[Stores]:
    CALLS.clear()
    with lakehouse(work, local_place(work)) as stores:
        stores.tables.ensure(OLD)
        write(stores.tables, OLD, [thing("a", 1), thing("b", 2)], watermarks={LOG.name: 7})
        yield stores


def values(stores: Stores) -> dict[str, int]:
    return {key: row["value"] for key, row in contents(stores.tables, STATE).items()}


def test_each_step_is_planned_and_carried_out_once(stores: Stores) -> None:
    with pytest.raises(StoreError, match="pkm warehouse migrate"):
        Place(stores.settings.warehouse, stores.settings.catalog).open().ensure(NEW)
    (plan,) = plan_migrations(stores, REGISTRY)
    assert [work.what for work in plan.work] == [
        "double_values (format 1 to 2): values double",
        "add_note (format 2 to 3): things have a note",
    ]
    assert migrate(stores, STATE.name, dry_run=True, registry=REGISTRY).done == plan.work
    assert CALLS == []

    report = migrate(stores, STATE.name, registry=REGISTRY)
    assert report.done == plan.work
    assert CALLS == ["double_values", "add_note"]
    table = stores.iceberg.load(STATE.name)
    assert format_of(table) == 3
    Place(stores.settings.warehouse, stores.settings.catalog).open().ensure(NEW)
    assert values(stores) == {"a": 2, "b": 4}
    assert stores.tables.watermark(STATE.name, LOG.name) == 7

    assert plan_migrations(stores, REGISTRY) == []
    assert migrate(stores, STATE.name, registry=REGISTRY).done == ()
    assert CALLS == ["double_values", "add_note"]


@pytest.mark.parametrize("moment", ["after the rewrite", "before the format", "after the first step"])
def test_one_that_was_killed_is_taken_up_again(stores: Stores, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    saved: list[object] = []

    def die(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        if moment == "after the rewrite":
            patch.setattr(Step, "save", die)
        elif moment == "before the format":
            patch.setattr("pkm_pipelines.operations.migrations._raise_format", die)
        else:
            patch.setattr(Step, "evolve", die)
        with pytest.raises(KilledError):
            migrate(stores, STATE.name, registry=REGISTRY)
    assert format_of(stores.iceberg.load(STATE.name)) == (2 if moment == "after the first step" else 1)
    with stores.state.acquire(f"table:{STATE.name}", ttl_seconds=30) as lease:
        saved.append(Step(stores, REGISTRY.migrations[1], lease, None).saved)  # pyright: ignore[reportArgumentType] (not used)
    assert saved == [{"rewritten": True} if moment == "before the format" else {}]
    migrate(stores, STATE.name, registry=REGISTRY)
    assert values(stores) == {"a": 2, "b": 4}, "doubled once"
    assert format_of(stores.iceberg.load(STATE.name)) == 3


def test_where_there_is_no_way_it_is_said(stores: Stores) -> None:
    newer = replace(STATE, format_version=0)
    with pytest.raises(StoreError, match="made by a newer version"):
        plan_migrations(stores, Registry((newer,), ()))
    with pytest.raises(StoreError, match="no migration starts from format 2"):
        migrate(stores, STATE.name, registry=Registry((NEW,), (REGISTRY.migrations[1],)))
    assert format_of(stores.iceberg.load(STATE.name)) == 1
    with pytest.raises(TableNotFoundError):
        migrate(stores, "silver.absent", registry=REGISTRY)
    with pytest.raises(ValueError, match="two migrations"):
        Registry((NEW,), (*REGISTRY.migrations, *REGISTRY.migrations))


def test_the_doctor_says_when_one_is_due(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    def formats() -> list[tuple[str, str]]:
        return [(check.outcome, check.message) for check in doctor(stores) if check.name == "table formats"]

    assert formats() == []
    monkeypatch.setattr(migrations, "plan_migrations", lambda stores: plan_migrations(stores, REGISTRY))
    assert formats() == [("fail", f"made by an older version of the project: {STATE.name}")]
    migrate(stores, STATE.name, registry=REGISTRY)
    assert formats() == []
    monkeypatch.setattr(migrations, "plan_migrations", lambda stores: plan_migrations(stores, Registry((OLD,), ())))
    ((outcome, message),) = formats()
    assert outcome == "fail"
    assert "made by a newer version" in message


def test_every_table_of_the_project_has_a_way_from_its_first_format() -> None:
    for spec in ICEBERG_TABLES:
        for version in range(1, spec.format_version + 1):
            assert len(PROJECT.path(spec.name, version)) == spec.format_version - version
