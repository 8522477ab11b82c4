"""Runs of the `update` job over partitions: the present day follows the sources, past days are backfilled."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from tests.support.lake import contents, named
from tests.support.location import CodeLocation, code_location
from tests.support.vaults import DAY_ONE, History

TODAY = dt.datetime.now(dt.UTC).date()


def over(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def notes(location: CodeLocation) -> int:
    return location.lake.table("bronze.raw_notes").row_count


@pytest.fixture
def vault(work: Path) -> Path:
    (work / "vault").mkdir()
    (work / "vault" / "Bread.md").write_text("# Bread\n")
    return work / "vault"


def test_the_past_of_a_folder_cannot_be_observed(work: Path, vault: Path) -> None:
    with code_location(work / "lake", [("vault", "folder", vault)]) as location:
        assert location.run(tags=over("2024-02-01", "2024-02-03")).success
        assert notes(location) == 0
        told = "vault: the past of a folder cannot be observed again; nothing to do for 2024-02-01…2024-02-03"
        assert location.progress.notes == [told] * 2, "once for the notes and once for the media"


def test_a_range_that_ends_today_follows_the_sources_too(work: Path, vault: Path) -> None:
    with code_location(work / "lake", [("vault", "folder", vault)]) as location:
        first = (TODAY - dt.timedelta(days=2)).isoformat()
        assert location.run(tags=over(first, TODAY.isoformat())).success
        assert notes(location) == 1


def test_a_run_of_yesterday_that_was_asked_to_follow_follows(work: Path, vault: Path) -> None:
    yesterday = (TODAY - dt.timedelta(days=1)).isoformat()
    with code_location(work / "lake", [("vault", "folder", vault)]) as location:
        config = location.module("assets.bronze").follow_config()
        assert location.run(partition_key=yesterday).success
        assert notes(location) == 0
        assert location.run(partition_key=yesterday, config=config).success
        assert notes(location) == 1


def test_days_backfilled_in_any_order_end_as_one_pass_does(work: Path) -> None:
    history = History(work / "history.git")
    texts = ["# A\n\nSee [[B]].\n", "# A\n\nSee [[B]] and [[C]].\n", "# A\n\nRest.\n"]
    days = [DAY_ONE.date() + dt.timedelta(days=number) for number in range(3)]
    for number, text in enumerate(texts):
        files = {"A.md": text, **({"B.md": "# B\n"} if number else {}), **({"C.md": "# C\n"} if number < 2 else {})}
        history.commit(files, at=DAY_ONE + dt.timedelta(days=number))
    source = [("history", "git", work / "history.git")]
    with code_location(work / "pass", source) as location:
        assert location.run(tags=over(days[0].isoformat(), days[-1].isoformat())).success
        whole = named(contents(location.lake))
        changes = notes(location)
    with code_location(work / "days", source) as location:
        for day in (days[2], days[0], days[1]):
            assert location.run(partition_key=day.isoformat()).success
        assert named(contents(location.lake)) == whole
        assert notes(location) == changes
        assert location.run(partition_key=TODAY.isoformat()).success
        assert named(contents(location.lake)) == whole
        assert location.lake.is_current()
