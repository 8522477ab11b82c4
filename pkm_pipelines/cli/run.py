"""`pkm run`: bring the lakehouse up to date, once or for as long as one writes."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pkm_pipelines.cli.common import AsJson, open_lake

if TYPE_CHECKING:
    from pkm_pipelines.cli.runner import RunReport
    from pkm_pipelines.lakehouse import Lakehouse
    from pkm_pipelines.operations.ingest import Days
    from pkm_pipelines.settings import Settings

_DAY = ["%Y-%m-%d"]
# Editors save in several steps; a sync tool brings many files at once.
_SETTLE_MS = 400
_TICK_MS = 1000


def run(
    source: Annotated[
        list[str] | None, typer.Option("--source", "-s", metavar="NAME", help="Only this source; may be repeated.")
    ] = None,
    first: Annotated[
        dt.datetime | None,
        typer.Option("--from", formats=_DAY, metavar="DAY", help="Backfill: first day of the history, YYYY-MM-DD."),
    ] = None,
    last: Annotated[
        dt.datetime | None,
        typer.Option("--to", formats=_DAY, metavar="DAY", help="Backfill: last day of the history, YYYY-MM-DD."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay, and run again whenever a source changes.")
    ] = False,
    accept_deletes: Annotated[
        bool, typer.Option("--accept-deletes", help="Delete also when more is gone than max_vanished_share.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring every table up to date with the sources.

    The road goes from the sources through bronze, silver and gold to the vectors. Only what changed is read,
    parsed and embedded. The run is recorded in Dagster's instance, so that its page is in the UI.

    With `--from` and `--to` the history of git sources is filled in for those days, in any order.
    """
    if watch and (first or last):
        raise typer.BadParameter("--watch follows what happens from now on; leave out --from and --to")

    with open_lake() as lake:
        run_once(lake, tuple(source or ()), _days(lake.settings, first, last), accept_deletes, as_json)
        if watch:
            _follow(lake, tuple(source or ()), as_json)


def _days(settings: Settings, first: dt.datetime | None, last: dt.datetime | None) -> Days | None:
    """The days to backfill, or None where nobody asked for any."""
    if first is None and last is None:
        return None
    from pkm_pipelines.operations.ingest import Days

    start, today = settings.partitions_start, dt.datetime.now(dt.UTC).date()
    days = Days(first.date() if first else start, last.date() if last else today)
    for option, day in (("--from", days.first), ("--to", days.last)):
        if day < start:
            raise typer.BadParameter(f"{option} {day} lies before partitions_start ({start}); set that earlier first")
        if day > today:
            raise typer.BadParameter(f"{option} {day} lies in the future (today is {today}, UTC)")
    if days.first > days.last:
        raise typer.BadParameter(f"--from {days.first} lies after --to {days.last}")
    return days


def run_once(
    lake: Lakehouse,
    sources: tuple[str, ...] = (),
    days: Days | None = None,
    accept_deletes: bool = False,
    as_json: bool = False,
    is_told_idle: bool = True,
) -> RunReport:
    """Run in this process, with progress on stderr, and print what was built.

    That there was nothing to do is printed only where `is_told_idle`.
    """
    from pkm_pipelines.cli import runner
    from pkm_pipelines.cli.output import print_json
    from pkm_pipelines.cli.progress import shown_progress

    with shown_progress() as progress:
        report = runner.run(lake, sources=sources, days=days, accept_deletes=accept_deletes, progress=progress)
    if report.nothing_to_do and not is_told_idle:
        return report
    if as_json:
        print_json(report)
    else:
        print_report(report)
    return report


def print_report(report: RunReport) -> None:
    """Print what a run built, table by table."""
    from pkm_pipelines.cli.output import duration, print_table, say, styled

    if report.nothing_to_do:
        say(f"Nothing has changed ({duration(report.seconds)}).")
        return
    rows = [
        (
            table.table,
            f"{table.row_count:,}",
            _change("+", table.rows_added, "green"),
            _change("~", table.rows_updated, "yellow"),
            _change("−", table.rows_deleted, "red"),
            table.snapshot_id,
            f"{table.seconds:.1f}",
        )
        for table in report.tables
    ]
    print_table(
        ("table", "rows", "added", "updated", "deleted", "snapshot", "seconds"),
        rows,
        right=("rows", "added", "updated", "deleted", "snapshot", "seconds"),
    )
    from pkm_pipelines.cli.output import console

    for failed in report.failed_checks:
        console().print(styled(f"check failed: {failed}", "yellow"))
    for failed in report.maintenance_failed:
        console().print(styled(f"maintenance: {failed}", "yellow"))
    for done in report.maintained:
        say(f"maintenance: {done}")
    say(f"Run {report.run_id[:8]} took {duration(report.seconds)}.")


def _change(sign: str, number: int, style: str) -> object:
    from pkm_pipelines.cli.output import styled

    return styled(f"{sign}{number:,}", style) if number else ""


def _follow(lake: Lakehouse, sources: tuple[str, ...], as_json: bool) -> None:
    """Run again on each change of a source until Ctrl-C, in this warm process.

    A run that fails is told and tried again at the next change: a vault is often broken for a moment while
    a sync tool is at work.
    """
    from pkm_pipelines.cli.output import fail, say
    from pkm_pipelines.model.errors import CancelledError, PkmError, SettingsError

    say("Watching; Ctrl-C stops.")
    try:
        for _ in _changes(lake, sources):
            try:
                run_once(lake, sources, as_json=as_json, is_told_idle=False)
            except (SettingsError, CancelledError):
                raise
            except PkmError as error:
                fail(str(error))
    except (KeyboardInterrupt, CancelledError):
        pass
    say("Stopped.")


def _changes(lake: Lakehouse, sources: tuple[str, ...]) -> Iterator[None]:
    """Yields when something may have changed: at once for what the system tells of, and now and then anyway.

    The second is for folders on network file systems, which tell nothing, and comes first right after the start, for
    what changed before the watch was set up.
    """
    from watchfiles import watch

    settings = lake.settings
    names = sources or tuple(source.name for source in settings.sources)
    roots = [lake.source(name).watched for name in names]
    looked = -math.inf
    for changes in watch(
        *roots,
        watch_filter=lambda _, path: _counts(Path(path), roots, settings),
        debounce=_SETTLE_MS,
        rust_timeout=_TICK_MS,
        yield_on_timeout=True,
        raise_interrupt=True,
    ):
        if not changes and time.monotonic() - looked < settings.sensor_seconds:
            continue
        looked = time.monotonic()
        yield


def _counts(path: Path, roots: list[Path], settings: Settings) -> bool:
    """Whether a change of `path` can matter: our own data and an editor's hidden folders cannot, a git folder can."""
    if path.is_relative_to(settings.data_dir):
        return False
    for root in roots:
        if path.is_relative_to(root):
            parts = path.relative_to(root).parts
            return not any(part.startswith(".") for part in parts)
    return False
