"""`pkm tables`: what there is, who follows it, how it is written, and what else may write to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pkm_pipelines.cli.common import AsJson, open_lake, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from pkm_pipelines.operations.debt import Limit

# Debt of this share of its limit is shown; every table has a snapshot and a manifest.
WORTH_SAYING = 0.05

tables = typer.Typer(invoke_without_command=True)


@tables.callback()
def list_tables(context: typer.Context, as_json: AsJson = False) -> None:
    """Show every table: rows, files, size, snapshots, what maintenance has to work off, and how it is written."""
    if context.invoked_subcommand is not None:
        return
    from pkm_pipelines.cli.output import ago
    from pkm_pipelines.operations.tables import overview

    with open_lake() as lake:
        found = overview(lake)
    right = ("rows", "files", "MB", "snapshots")
    rows = [
        (
            one.name,
            f"{one.rows:,}",
            f"{one.files:,}",
            f"{one.bytes / 1e6:,.1f}",
            f"{one.snapshots:,}",
            one.mode,
            ago(one.committed_at),
            _cannot_be_read(one.error) if one.error else _debt(one.debt),
        )
        for one in found
    ]
    show(found, as_json, ("table", *right, "mode", "committed", "debt"), rows, right)


def _debt(limits: Sequence[Limit]) -> str | Text:
    """What is nearest to its limit, or everything that is past it and how to work it off."""
    from pkm_pipelines.cli.output import styled

    if passed := [limit for limit in limits if limit.is_passed]:
        return styled("; ".join(map(str, passed)), "yellow")
    first = next(iter(limits), None)
    return f"{first.share:.0%} ({first.name})" if first is not None and first.share >= WORTH_SAYING else ""


def _cannot_be_read(error: str) -> Text:
    from pkm_pipelines.cli.output import styled

    return styled(f"cannot be read: {error}", "red")


@tables.command()
def consumers(
    name: Annotated[str | None, typer.Argument(metavar="TABLE", help="Only those of this table.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show who follows which table, and how far behind it is."""
    from pkm_pipelines.cli.output import ago
    from pkm_pipelines.operations.tables import Unreadable, list_consumers

    with open_lake() as lake:
        found = list_consumers(lake, name)
    right = ("watermark", "snapshots behind", "rows behind")
    rows = [
        (one.table, _cannot_be_read(one.error), "", "", "", "", "")
        if isinstance(one, Unreadable)
        else (
            one.table,
            one.name,
            one.kind,
            one.watermark,
            one.snapshots_behind,
            one.rows_behind,
            ago(one.behind_since),
        )
        for one in found
    ]
    show(found, as_json, ("table", "consumer", "kind", *right, "since"), rows, right)


@tables.command("explain")
def explain_tables(
    name: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help="The table; without one, every table and the last write to it."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many writes to TABLE.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Say how the last writes to a table were carried out, and why: whole files, or deletes by position."""
    if name is not None:
        explain_table(name, limit, as_json)
        return
    from pkm_pipelines.cli.output import ago
    from pkm_pipelines.operations.tables import Unreadable, explain_all

    with open_lake() as lake:
        found = explain_all(lake)
    rows: list[tuple[str | Text, ...]] = []
    for one in found:
        if isinstance(one, Unreadable):
            rows.append((one.table, "", "", "", "", _cannot_be_read(one.error)))
            continue
        said = [(ago(last.committed_at), last.reason) for last in one.decisions] or [("", "")]
        rows += [(one.table, one.mode, f"{one.delete_files:,}", f"{one.deleted_rows:,}", *last) for last in said]
    right = ("delete files", "deleted rows")
    show(found, as_json, ("table", "mode", *right, "last merge", "because"), rows, right)


def explain_table(name: str, limit: int, as_json: bool) -> None:
    """Print how one table was written."""
    from pkm_pipelines.cli.output import print_json, print_table, say

    with open_lake() as lake:
        found = lake.tables.explain(name, limit)
    if as_json:
        print_json(found)
        return
    say(f"{found.table}: {found.mode}; {found.delete_files:,} delete files take {found.deleted_rows:,} rows off reads")
    rows = [(one.snapshot_id, one.committed_at, one.rows, one.mode, one.reason) for one in found.decisions]
    print_table(("snapshot", "committed", "rows", "written as", "because"), rows, right=("snapshot", "rows"))


@tables.command()
def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called from now on: layer.table.")],
    metadata: Annotated[str | None, typer.Argument(metavar="METADATA", help="URL of its newest metadata.json.")] = None,
    other: Annotated[
        str | None,
        typer.Option("--in", metavar="CATALOG", help="Enter our table NAME in this catalog: glue://, https://…, SQL."),
    ] = None,
) -> None:
    """Make an existing Iceberg table, of another catalog or engine, one of this catalog. Nothing is copied.

    With `--in` the other way round: a table of ours is entered in another catalog as it is now, for others to read, or
    its entry there is brought up to date.
    """
    from pkm_pipelines.cli.output import say
    from pkm_pipelines.operations.sharing import share_table
    from pkm_pipelines.operations.warehouse import register_table

    if (metadata is None) == (other is None):
        raise typer.BadParameter("name either METADATA, the file of a table to register here, or --in CATALOG")
    with open_lake() as lake:
        if metadata is None:
            shared = share_table(lake, name, str(other))
            say(f"{name} in {shared.catalog}: {shared.outcome}. Write to it through this catalog only.")
            return
        snapshot = register_table(lake, name, metadata)
    say(f"{name} is registered at snapshot {snapshot or '(none)'}; only this catalog may write to it from now on.")


@tables.command()
def unregister(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The table, by its name here: layer.table.")],
    as_json: AsJson = False,
) -> None:
    """Take a table out of this catalog, also one whose files are gone. No file is deleted.

    The project's own tables stay: without its entry such a table would be made anew, and empty, by the next run.
    """
    from pkm_pipelines.cli.output import print_json, say
    from pkm_pipelines.model.errors import StoreError
    from pkm_pipelines.model.tables import BY_NAME
    from pkm_pipelines.operations.warehouse import unregister_table

    if name in BY_NAME:
        raise StoreError(f"{name} is a table of the project: the next run would make it anew, and empty; it stays")
    with open_lake() as lake:
        metadata = unregister_table(lake, name)
    if as_json:
        print_json({"table": name, "metadata_location": metadata})
        return
    say(f"{name} is no table of this catalog any more.")
    if metadata:
        say(f"`pkm tables register {name} {metadata}` makes it one again.")
