"""`pkm init`, `pkm status` and `pkm doctor`: setting up and looking after a lakehouse."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pkm_pipelines.cli.common import AsJson, open_lake

if TYPE_CHECKING:
    from pkm_pipelines.model.records import Problem
    from pkm_pipelines.operations.doctor import Check
    from pkm_pipelines.operations.jobs import Job
    from pkm_pipelines.operations.status import Status, TableStatus


def init(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="A folder of notes or a git repository (default: this folder)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a pkm.toml that is there.")] = False,
) -> None:
    """Write a starting `pkm.toml` for the notes in PATH.

    It is written into this folder, and the data will lie beside it in `.pkm/`.
    """
    from pkm_pipelines.cli.output import say
    from pkm_pipelines.cli.template import detect_source, write_settings
    from pkm_pipelines.settings import FILE_NAME

    source = detect_source(path or Path())
    file = write_settings(Path(FILE_NAME), source, force=force)
    say(f"{file}: source {source.name} ({source.kind}) at {source.path}. Now: pkm run")


def status(
    show_problems: Annotated[bool, typer.Option("--problems", help="List what is odd about files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show tables, sources, runs and how far behind they are."""
    from pkm_pipelines.cli.output import print_json

    with open_lake() as lake:
        if show_problems:
            found = lake.problems()
            if as_json:
                print_json(found)
            else:
                _print_problems(found)
            return
        state = lake.status()
    if as_json:
        print_json(state)
    else:
        print_status(state)


def print_status(state: Status) -> None:
    """Print tables, sources and runs."""
    from pkm_pipelines.cli.output import ago, console, count, print_table, say, styled

    print_table(
        ("table", "rows", "snapshot", "committed", "lag"),
        [
            (
                table.name,
                f"{table.rows:,}",
                "" if table.snapshot_id is None else str(table.snapshot_id),
                ago(table.committed_at),
                _lag(table),
            )
            for table in state.tables
        ],
        right=("rows", "snapshot"),
    )
    console().print()
    print_table(
        ("source", "kind", "path", "notes", "problems", "state"),
        [
            (
                source.name,
                source.kind,
                source.path,
                f"{source.notes:,}",
                f"{source.problems:,}" if source.problems else "",
                styled(source.error, "red")
                if source.error
                else styled("has changes", "yellow")
                if source.pending
                else "read to the end",
            )
            for source in state.sources
        ],
        right=("notes", "problems"),
    )
    if state.jobs:
        console().print()
        print_table(
            ("run", "status", "stage", "done", "began", "took", "error"),
            [
                (
                    job.run_id[:8],
                    styled(job.status, {"failed": "red", "running": "green"}.get(job.status, "")),
                    *_stage(job),
                    (job.started_at or job.queued_at or "")[:19].replace("T", " "),
                    _took(job),
                    styled(job.error or "", "red"),
                )
                for job in state.jobs
            ],
        )
    if state.problems:
        say(f"{count(state.problems, 'problem')} in files: pkm status --problems")


def _lag(table: TableStatus) -> object:
    from pkm_pipelines.cli.output import count, styled

    behind = [
        f"{'unknown' if mark.behind is None else count(mark.behind, 'snapshot')} of {mark.input}"
        for mark in table.inputs
        if mark.behind != 0
    ]
    return styled(", ".join(behind), "yellow")


def _stage(job: Job) -> tuple[str, str]:
    """Where a run is, or was when it ended before its time."""
    if job.status == "succeeded":
        return "", ""
    done = job.counts.get(job.stage)
    return job.stage, "" if done is None else f"{done:,} of {job.total:,}" if job.total else f"{done:,}"


def _took(job: Job) -> str:
    from pkm_pipelines.cli.output import duration

    if job.started_at is None or job.ended_at is None:
        return ""
    began, ended = dt.datetime.fromisoformat(job.started_at), dt.datetime.fromisoformat(job.ended_at)
    return duration((ended - began).total_seconds())


def _print_problems(found: list[Problem]) -> None:
    from pkm_pipelines.cli.output import print_table, say

    if not found:
        say("No problems.")
        return
    print_table(
        ("source", "path", "problem", "message"),
        [(problem.source, problem.path, problem.code, problem.message) for problem in found],
    )


def doctor(as_json: AsJson = False) -> None:
    """Check that everything works, and say what to do where not.

    Python and packages, every store (written to and read from), the catalog, the state service, the model, the
    sources and the disk. The exit code is 1 if anything fails.
    """
    from pkm_pipelines.cli.output import print_json

    with open_lake() as lake:
        checks = lake.doctor()
    if as_json:
        print_json(checks)
    else:
        _print_checks(checks)
    if any(check.outcome == "fail" for check in checks):
        raise typer.Exit(1)


def _print_checks(checks: list[Check]) -> None:
    from rich.text import Text

    from pkm_pipelines.cli.output import clean, console

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    width = max(len(check.name) for check in checks)
    out = console()
    for check in checks:
        out.print(
            Text.assemble(
                (f"{check.outcome:<4}  ", styles[check.outcome]),
                f"{clean(check.name):<{width}}  ",
                clean(check.message),
            )
        )
        if check.outcome != "ok" and check.advice:
            out.print(Text(f"      {'':<{width}}  → {clean(check.advice)}", style="dim"))
