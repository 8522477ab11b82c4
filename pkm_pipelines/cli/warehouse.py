"""`pkm warehouse …`: all tables at once: to another place, into a new catalog, to the present format."""

from __future__ import annotations

from typing import Annotated

import typer

from pkm_pipelines.cli.common import AsJson, open_lake

warehouse = typer.Typer(
    no_args_is_help=True,
    help="Move the warehouse, make its catalog anew from its files, or bring old tables to the present format.",
)


@warehouse.command()
def move(
    target: Annotated[str, typer.Argument(metavar="URL", help="Where to: file:///… or s3://bucket/prefix.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be copied, and change nothing.")] = False,
    write_settings: Annotated[
        bool, typer.Option("--write-settings", help="Set `warehouse` in pkm.toml to the new place when all is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy every table with its history to another place, compare, and switch the catalog over.

    Interrupted at any moment it goes on with the next call. The old files stay until you remove them.
    """
    from pkm_pipelines.cli.output import print_json, print_table, say
    from pkm_pipelines.cli.progress import shown_progress
    from pkm_pipelines.operations.warehouse import move_warehouse
    from pkm_pipelines.settings import find_file

    file = find_file() if write_settings else None
    with open_lake() as lake, shown_progress() as progress:
        report = move_warehouse(lake, target, progress=progress, dry_run=dry_run, settings_file=file)
    if as_json:
        print_json(report)
        return
    rows = [(one.table, f"{one.files:,}", f"{one.bytes / 1e6:,.1f}", f"{one.rows:,}") for one in report.tables]
    print_table(("table", "files", "MB", "rows"), rows, right=("files", "MB", "rows"))
    if report.settings_file:
        say(f"{report.settings_file} now says: {report.setting}")
    elif not dry_run:
        say(f"Now set in pkm.toml: {report.setting}")


@warehouse.command("rebuild-catalog")
def rebuild(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be found, and change nothing.")] = False,
    choose: Annotated[
        list[str] | None,
        typer.Option("--choose", metavar="TABLE=METADATA", help="The metadata file of a table that is in doubt."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a lost catalog anew from the metadata files that lie in the warehouse.

    Tables for which the files alone do not tell what is right are listed with what there is, and left as they are until
    you choose; so are those of the catalog in whose folder another table lies.
    """
    from pkm_pipelines.cli.output import print_json, print_table
    from pkm_pipelines.operations.rebuild import rebuild_catalog

    choices = {name: metadata for name, _, metadata in (word.partition("=") for word in choose or ())}
    with open_lake() as lake:
        report = rebuild_catalog(lake, dry_run=dry_run, choices=choices)
    if as_json:
        print_json(report)
        return
    word = "would be registered" if dry_run else "registered"
    rows = [(one.name, word, one.metadata_location) for one in report.registered]
    rows += [(name, "was there", "") for name in report.present]
    for one in report.doubtful:
        rows.append((one.name, "in doubt", one.doubt))
        rows += [("", f"{may_be.snapshots} snapshots", may_be.metadata_location) for may_be in one.candidates]
    print_table(("table", "", "metadata"), rows)
    if report.doubtful:
        raise typer.Exit(1)


@warehouse.command()
def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is due, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring tables that an older version of the project made to the present format.

    Each step is one way and may be interrupted: the next call goes on. Back up the warehouse first.
    """
    from pkm_pipelines.cli.output import print_json, print_table, say
    from pkm_pipelines.cli.progress import shown_progress
    from pkm_pipelines.operations.migrations import migrate, plan_migrations

    with open_lake() as lake, shown_progress() as progress:
        due = [plan.table for plan in plan_migrations(lake)]
        reports = [migrate(lake, table, dry_run=dry_run, progress=progress) for table in due]
    if as_json:
        print_json(reports)
    elif not reports:
        say("Every table is of the present format.")
    else:
        rows = [(report.table, work.what) for report in reports for work in report.done]
        print_table(("table", "would do" if dry_run else "done"), rows)
