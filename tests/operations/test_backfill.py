"""A git history in any order of days ends in the same state as one pass in order."""

from __future__ import annotations

import datetime as dt
import random
import subprocess
from pathlib import Path

from pkm_pipelines.operations.ingest import Days
from tests.support.lake import contents, open_lake
from tests.support.vaults import History

DAY = dt.date(2026, 3, 1)


def write_history(path: Path) -> Path:
    """Six days: new notes, edits, a rename, a delete, and a note that comes back."""
    history = History(path)
    bread, flour = (
        "# Bread\n\nOf [[Flour]] and patience, and of nothing else at all.\n",
        "# Flour\n\nMilled from rye.\n",
    )
    days = [
        {"Bread.md": bread},
        {"Bread.md": bread, "Flour.md": flour},
        {"Bread.md": bread + "\nAnd [[Water]].\n", "Flour.md": flour},
        {"Loaf.md": bread + "\nAnd [[Water]].\n", "Flour.md": flour},
        {"Loaf.md": bread + "\nAnd [[Water]].\n"},
        {"Loaf.md": bread + "\nAnd [[Water]].\n", "Flour.md": flour + "\nAnd from wheat.\n"},
    ]
    for number, files in enumerate(days):
        history.commit(files, at=dt.datetime(2026, 3, 1 + number, 12, tzinfo=dt.UTC))
    return path


def test_days_in_any_order(work: Path, budget: int) -> None:
    repository = write_history(work / "repository")
    days = [DAY + dt.timedelta(days=number) for number in range(6)]
    with open_lake(work / "in order", repository, kind="git") as lake:
        lake.update(days=Days(days[0], days[-1]))
        wanted = contents(lake, alive_only=False)
        bronze = lake.tables.read("bronze.raw_notes").read_all().num_rows
    assert bronze == 6
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for turn in range(2 * budget):
        rng.shuffle(days)
        with open_lake(work / f"turn {turn}", repository, kind="git") as lake:
            if rng.random() < 0.5:
                lake.update()  # HEAD now, before or among the backfills
            for day in days:
                lake.update(days=Days(day, day))
            assert contents(lake, alive_only=False) == wanted, days
            assert lake.tables.read("bronze.raw_notes").read_all().num_rows == bronze


def test_a_real_history_backfilled_and_followed(work: Path, shared_data: Path) -> None:
    repository = work / "kepano.git"
    bundle = shared_data / "git" / "kepano.bundle"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(bundle), str(repository)], check=True)
    with (
        open_lake(work / "head", repository, kind="git") as head,
        open_lake(work / "all", repository, kind="git") as whole,
    ):
        head.update()
        whole.update(days=Days(dt.date(2023, 9, 1), dt.date(2023, 12, 31)))
        whole.update(days=Days(dt.date(2024, 1, 1), dt.date(2026, 12, 31)))
        whole.update()
        assert contents(head) == contents(whole)
        changes = whole.tables.read("bronze.raw_notes", columns=["change_id"]).read_all()["change_id"].to_pylist()
        assert len(changes) == len(set(changes)) > 132
        before = whole.iceberg.snapshot_id("bronze.raw_notes")
        whole.update(days=Days(dt.date(2023, 9, 12), dt.date(2023, 9, 13)))
        assert whole.iceberg.snapshot_id("bronze.raw_notes") == before


def test_the_past_of_a_folder_cannot_be_observed(work: Path) -> None:
    from pkm_pipelines.model.progress import CountingProgress

    vault = work / "vault"
    vault.mkdir()
    (vault / "Bread.md").write_text("# Bread\n")
    with open_lake(work / "lake", vault) as lake:
        progress = CountingProgress()
        lake.update(days=Days(DAY, DAY), progress=progress)
        assert any("cannot be observed" in note for note in progress.notes)
        assert lake.iceberg.snapshot_id("bronze.raw_notes") is None
