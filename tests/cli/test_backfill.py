"""`pkm run --from … --to …`: what is asked for wrongly, what has no past, and what is told of a long range."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pkm_pipelines.cli import runner
from pkm_pipelines.cli.main import app
from pkm_pipelines.model.progress import CountingProgress
from pkm_pipelines.operations.ingest import Days
from tests.support.location import code_location
from tests.support.vaults import History

TODAY = dt.datetime.now(dt.UTC).date()
FEBRUARY = Days(dt.date(2024, 2, 1), dt.date(2024, 2, 29))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--from 2024-01-02 --to 2023-01-01", "lies before partitions_start"),
        ("--from 2024-03-02 --to 2024-02-01", "lies after --to 2024-02-01"),
        ("--to 2020-01-01", "lies before partitions_start"),
        (f"--to {TODAY + dt.timedelta(days=3)}", "lies in the future"),
        (f"--from {TODAY + dt.timedelta(days=3)}", "lies in the future"),
    ],
)
def test_a_range_that_cannot_be_is_wrong_usage(
    work: Path, monkeypatch: pytest.MonkeyPatch, words: str, reason: str
) -> None:
    (work / "pkm.toml").write_text("partitions_start = 2024-01-01\n")
    monkeypatch.setenv("PKM_CONFIG", str(work / "pkm.toml"))
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["run", *words.split()])
    assert result.exit_code == 2, result.output
    assert reason in result.stderr
    assert not (work / ".pkm").exists()


def test_a_folder_has_no_past_and_no_run_of_it(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    (work / "vault").mkdir()
    (work / "vault" / "Bread.md").write_text("# Bread\n")
    with code_location(work / "lake", [("vault", "folder", work / "vault")]) as location:
        progress = CountingProgress()
        assert runner.run(location.lake, days=FEBRUARY, progress=progress).nothing_to_do
        told = "the past of a folder cannot be observed again; nothing to do for"
        assert progress.notes == [f"{told} 2024-02-01…2024-02-29"]
        assert not location.lake.has_table("bronze.raw_notes")
        report = runner.run(location.lake, days=Days(FEBRUARY.first, TODAY), progress=progress)
        assert location.lake.table("bronze.raw_notes").row_count == 1, "the present day follows the source"
        assert [table.rows_added for table in report.tables if table.table == "bronze.raw_notes"] == [1]


def test_each_table_is_told_of_once(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    history = History(work / "history.git")
    for day in (3, 5):
        history.commit({"Loaf.md": f"# Loaf\n\n{day}\n"}, at=dt.datetime(2024, 2, day, tzinfo=dt.UTC))
    with code_location(work / "lake", [("history", "git", work / "history.git")]) as location:
        days = Days(dt.date(2024, 2, 1), dt.date(2024, 2, 5))
        report = runner.run(location.lake, days=days, progress=location.progress)
        added = [(table.table, table.rows_added) for table in report.tables]
        assert len(dict(added)) == len(added)
        assert dict(added)["bronze.raw_notes"] == 2
        [media] = [table for table in report.tables if table.table == "bronze.raw_media"]
        assert (media.row_count, media.snapshot_id) == (0, ""), "a table without a row has no snapshot"
