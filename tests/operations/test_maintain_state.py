"""Maintaining the state as an operation."""

from __future__ import annotations

from pathlib import Path

from pkm_pipelines.model.records import Mutation
from pkm_pipelines.operations.debt import debt_of, due
from pkm_pipelines.operations.maintain_state import plan_state
from pkm_pipelines.operations.maintenance import STATE_TABLE, last_report, maintain, tables_of
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.settings import Settings
from tests.support.state import end_services


def test_the_state_is_planned_compacted_and_reported(work: Path) -> None:
    settings = Settings(
        home=work,
        runtime_dir=work / "run",
        maintenance={"state_files": 20},  # pyright: ignore[reportArgumentType] (pydantic parses it)
    )
    with Stores(settings) as stores:
        assert tables_of(stores, "state") == [STATE_TABLE]
        for round_ in range(25):
            stores.state.apply([Mutation(f"k:{number}", b"%d" % round_) for number in range(10)])
            if round_ % 10 == 0:
                stores.state.checkpoint("table", 1)
        debt = debt_of(stores, STATE_TABLE)
        assert debt.files >= 3
        assert due(stores, debt) == ["state"]
        plan = plan_state(stores)
        assert "into one run" in plan.work[0].what
        assert maintain(stores, "state", STATE_TABLE, dry_run=True).done == plan.work
        report = maintain(stores, "state", STATE_TABLE)
        assert report.details["compaction"] == "finished"
        assert report.details["runs"] == 1
        assert report.done
        assert last_report(stores, "state", STATE_TABLE) == report
        assert {value for _, value in stores.state.scan("k:")} == {b"24"}
    end_services(work / "run")
