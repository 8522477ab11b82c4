"""Maintaining vectors as an operation: planned, carried out beside writers, and reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pkm_pipelines.model.errors import TableNotFoundError
from pkm_pipelines.operations import maintain_vectors
from pkm_pipelines.operations.debt import debt_of, due, over_limit
from pkm_pipelines.operations.maintain_vectors import plan_vectors
from pkm_pipelines.operations.maintenance import last_report, maintain
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.settings import Settings
from pkm_pipelines.storage import lance_maintain
from tests.support.state import end_services
from tests.support.vectors import NAME, SPEC, contents, delta, row

NOTES = "silver.processed_notes"


@pytest.fixture
def stores(work: Path) -> Iterator[Stores]:
    settings = Settings(
        home=work,
        runtime_dir=work / "run",
        maintenance={"fragments": 5, "version_age_hours": 0},  # pyright: ignore[reportArgumentType] (pydantic parses it)
    )
    with Stores(settings) as stores:
        stores.vectors.ensure(SPEC)
        yield stores
    end_services(work / "run")


def test_debt_becomes_due_and_maintenance_takes_it_away(stores: Stores) -> None:
    assert due(stores, debt_of(stores, NAME)) == []
    for step in range(6):
        stores.vectors.write(delta([row(f"k{step}")], watermarks={NOTES: step}))
    stores.vectors.tag(NAME, "cut-1", stores.vectors.version(NAME) or 0)
    stores.vectors.write(delta([row("k0", rank=1)]))
    debt = debt_of(stores, NAME)
    assert debt.fragments == 6
    assert [limit.name for limit in over_limit(stores, debt)] == ["fragments that could be merged"]
    assert due(stores, debt) == ["vectors"]

    plan = plan_vectors(stores, NAME)
    assert plan.work[0].what == "rewrite 6 fragments of 6 rows into 1"
    dry = maintain(stores, "vectors", NAME, dry_run=True)
    assert dry.dry_run
    assert dry.done == plan.work
    assert debt_of(stores, NAME) == debt, "a dry run changes nothing"

    report = maintain(stores, "vectors", NAME)
    assert report.done[0] == plan.work[0]
    assert (report.details["fragments"], report.details["versions"]) == (1, 2)
    assert last_report(stores, "vectors", NAME) == report
    assert due(stores, debt_of(stores, NAME)) == []
    assert contents(stores.vectors) == {"k0": 1, **{f"k{step}": 0 for step in range(1, 6)}}
    assert contents(stores.vectors, version="cut-1") == {f"k{step}": 0 for step in range(6)}
    assert stores.vectors.watermark(NAME, NOTES) == 5
    assert plan_vectors(stores, NAME).is_empty


def test_versions_that_are_too_young_to_go_are_no_debt(work: Path) -> None:
    young = Settings(home=work, runtime_dir=work / "run", maintenance={"versions": 2})  # pyright: ignore[reportArgumentType]
    with Stores(young) as stores:
        stores.vectors.ensure(SPEC)
        for step in range(5):
            stores.vectors.write(delta([row("k", rank=step)]))
        debt = debt_of(stores, NAME)
        assert debt.versions >= 5
        assert (debt.expirable, due(stores, debt)) == (0, [])
    end_services(work / "run")


def test_a_table_that_is_not_there_is_named(stores: Stores) -> None:
    with pytest.raises(TableNotFoundError, match="nothing_here"):
        plan_vectors(stores, "vectors.nothing_here")


def test_what_writers_keep_touching_is_done_under_the_lease_or_left(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(4):
        stores.vectors.write(delta([row(f"k{step}")]))
    monkeypatch.setattr(maintain_vectors, "LEASE_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(lance_maintain, "ATTEMPTS", 1)
    rewrite = lance_maintain._rewrite  # pyright: ignore[reportPrivateUsage]
    busy = True

    def beside_a_writer(dataset: object, run: object) -> int:
        if busy:
            stores.vectors.write(delta([row("k0", rank=stores.vectors.version(NAME) or 0)]))
        return rewrite(dataset, run)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(lance_maintain, "_rewrite", beside_a_writer)
    with stores.state.acquire(f"table:{NAME}", ttl_seconds=30):
        report = maintain(stores, "vectors", NAME)
        assert report.details["fragments"] != 1
    busy = False
    assert maintain(stores, "vectors", NAME).details["fragments"] == 1
    assert len(contents(stores.vectors)) == 4
