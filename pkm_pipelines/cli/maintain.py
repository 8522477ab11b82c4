"""`pkm maintain`: working off what tables, vectors and the state have piled up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pkm_pipelines.cli.common import AsJson, open_lake

if TYPE_CHECKING:
    from pkm_pipelines.lakehouse import Lakehouse
    from pkm_pipelines.model.progress import Progress
    from pkm_pipelines.operations.maintenance import Report, Work

WORDS = "compact, expire, orphans, manifests, stats, retention, vectors, state, or all"


def maintain(
    operation: Annotated[
        str | None, typer.Argument(metavar="OPERATION", help=f"One of {WORDS}; by default what is due.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option("--table", "-t", metavar="NAME", help="Only this table; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make tables small and fast again: merge small files, expire snapshots, delete what nothing needs.

    It is safe beside runs and may be interrupted at any moment: what is done is kept, and the next one goes on.
    """
    from pkm_pipelines.cli.output import fail, print_json
    from pkm_pipelines.cli.progress import shown_progress

    with open_lake() as lake:
        steps, reports = _steps(lake, operation, table)
        with shown_progress() as progress:
            reports += _run(lake, steps, dry_run, progress)
    if as_json:
        print_json(reports)
    else:
        _print(reports, dry_run)
    if failed := [report for report in reports if report.error]:
        for report in failed:
            fail(f"{report.operation or 'debt'} {report.table}: {report.error}")
        raise typer.Exit(1)


def _steps(
    lake: Lakehouse, operation: str | None, only: list[str] | None
) -> tuple[list[tuple[str, str]], list[Report]]:
    """Which operation on which table, in order; and the tables of which that cannot be told, with the reason."""
    from pkm_pipelines.model.errors import TableNotFoundError
    from pkm_pipelines.operations.debt import debt_of, debtors, due, reason
    from pkm_pipelines.operations.maintenance import OPERATIONS, Report, tables_of
    from pkm_pipelines.operations.status import VECTORS

    everything = debtors(lake)
    only = [lake.vector_table or one if one == VECTORS else one for one in only or ()]
    for one in only:
        if one not in everything:
            raise TableNotFoundError(f"there is no table {one} to maintain; there are {', '.join(everything)}")
    wanted = [one for one in everything if not only or one in only]
    if operation is None:
        steps: list[tuple[str, str]] = []
        unread: list[Report] = []
        for one in wanted:
            try:
                steps += [(name, one) for name in due(lake, debt_of(lake, one))]
            except TableNotFoundError:  # dropped meanwhile
                continue
            except Exception as error:  # noqa: BLE001 # told, whatever it is
                unread.append(Report("", one, error=reason(error)))
        return steps, unread
    if operation != "all" and operation not in OPERATIONS:
        raise typer.BadParameter(f"no maintenance is called {operation!r}; there are {WORDS}")
    names = ("retention", *OPERATIONS[: OPERATIONS.index("retention")], "vectors", "state")
    return [
        (name, one) for name in names if operation in ("all", name) for one in tables_of(lake, name) if one in wanted
    ], []


def _run(lake: Lakehouse, steps: list[tuple[str, str]], dry_run: bool, progress: Progress) -> list[Report]:
    """Carry them out. A table for which one of them fails is left alone from then on, and the others go on."""
    from pkm_pipelines.model.errors import CancelledError
    from pkm_pipelines.operations.debt import reason
    from pkm_pipelines.operations.maintenance import Report
    from pkm_pipelines.operations.maintenance import maintain as carry_out

    reports: list[Report] = []
    failed: set[str] = set()
    for operation, table in steps:
        if table in failed:
            continue
        progress.check_cancelled()
        try:
            reports.append(carry_out(lake, operation, table, dry_run=dry_run, progress=progress))
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 # told, whatever it is
            reports.append(Report(operation, table, dry_run=dry_run, error=reason(error)))
            failed.add(table)
    return reports


def _print(reports: list[Report], dry_run: bool) -> None:
    from pkm_pipelines.cli.output import print_table, say

    rows = [
        (report.operation, work.table, work.what, _less(work, work.saves_files), _less(work, work.saves_bytes / 1e6))
        for report in reports
        for work in report.done
    ]
    if not rows:
        if not any(report.error for report in reports):
            say("Nothing to do.")
        return
    done = "would do" if dry_run else "done"
    print_table(("operation", "table", done, "files less", "MB less"), rows, right=("files less", "MB less"))


def _less(work: Work, number: float) -> str:
    """How much less there is; an estimate says that it is one."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"
    return f"about {shown}" if work.estimated and number else shown
