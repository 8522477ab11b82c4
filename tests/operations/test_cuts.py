"""Cuts: which are kept, what they hold, and that each can be read as it was."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.operations.cuts import Cut, kept_cuts, list_cuts, take_cut
from tests.support.lake import open_lake

moments = st.integers(0, 2 * 365 * 24 * 60).map(
    lambda minutes: dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=minutes)
)
counts = st.integers(0, 5)


def cuts_at(times: list[dt.datetime]) -> list[Cut]:
    return [Cut(f"{number:04}", at, {}) for number, at in enumerate(times)]


@given(st.lists(moments, max_size=60), st.integers(1, 5), counts, counts, counts)
def test_kept_cuts(times: list[dt.datetime], last: int, hourly: int, daily: int, monthly: int) -> None:
    cuts = cuts_at(times)
    kept = kept_cuts(cuts, last, hourly, daily, monthly)
    assert kept <= {cut.id for cut in cuts}
    assert len(kept) <= last + hourly + daily + monthly
    newest = sorted(cuts, key=lambda cut: (cut.at, cut.id), reverse=True)
    assert {cut.id for cut in newest[:last]} <= kept
    months = sorted({cut.at.strftime("%Y-%m") for cut in cuts}, reverse=True)[:monthly]
    assert all(any(cut.id in kept and cut.at.strftime("%Y-%m") == month for cut in cuts) for month in months)
    # Thinning twice is thinning once: a kept cut is not lost to a second look.
    assert kept_cuts([cut for cut in cuts if cut.id in kept], last, hourly, daily, monthly) == kept


def test_a_cut_is_readable_after_the_tables_have_moved_on(work: Path) -> None:
    vault = work / "vault"
    vault.mkdir()
    (vault / "One.md").write_text("# One\n\nThe first.\n")
    with open_lake(
        work / "lake", vault, keep_cuts_last=1, keep_cuts_hourly=0, keep_cuts_daily=0, keep_cuts_monthly=0
    ) as lake:
        lake.update()
        cut = take_cut(lake, "first")
        assert cut is not None and cut.lag == ()
        assert take_cut(lake, "again") is None
        (vault / "Two.md").write_text("# Two\n")
        lake.update()
        then = lake.tables.read(
            "silver.processed_notes", snapshot_id=cut.snapshots["silver.processed_notes"]
        ).read_all()
        assert then["path"].to_pylist() == ["One.md"]
        first_tags = lake.tables.tags("silver.processed_notes")
        assert cut.snapshots["silver.processed_notes"] in first_tags.values()
        second = take_cut(lake, "second")
        assert second is not None
        assert [cut.id for cut in list_cuts(lake)] == ["second"]
        left = {tag for tag in lake.tables.tags("silver.processed_notes") if tag.startswith("cut-")}
        assert left == {f"cut-{second.snapshots['silver.processed_notes']}"}
        vectors = lake.vector_table
        assert vectors is not None
        assert {tag for tag in lake.vectors.tags(vectors) if tag.startswith("cut-")} == {
            f"cut-{second.snapshots[vectors]}"
        }


def test_lag_is_named(work: Path) -> None:
    from pkm_pipelines.model.progress import NullProgress
    from pkm_pipelines.operations.ingest import ingest
    from pkm_pipelines.operations.write import write_all

    vault = work / "vault"
    vault.mkdir()
    (vault / "One.md").write_text("# One\n")
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        (vault / "Two.md").write_text("# Two\n")
        write_all(lake, "bronze.raw_notes", ingest(lake, "notes", progress=NullProgress()))
        cut = take_cut(lake, "behind")
        assert cut is not None
        assert cut.lag == ("silver.processed_notes < bronze.raw_notes",)
