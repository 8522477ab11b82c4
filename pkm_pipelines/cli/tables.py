"""`pkm tables` and `pkm table NAME …`: what tables hold, how they came to it, and changing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pkm_pipelines.cli.common import AsJson, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from pkm_pipelines.lakehouse import Lakehouse
    from pkm_pipelines.operations.debt import Limit

# Debt of this share of its limit is shown; every table has a snapshot and a manifest.
WORTH_SAYING = 0.05

tables = typer.Typer(invoke_without_command=True)
table = typer.Typer(invoke_without_command=True)


def _open() -> Lakehouse:
    settings = load_settings()
    from pkm_pipelines.lakehouse import Lakehouse

    return Lakehouse.open(settings)


def _show(
    value: Any, as_json: bool, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str]
) -> None:
    from pkm_pipelines.cli.output import print_json, print_table

    if as_json:
        print_json(value)
    else:
        print_table(columns, rows, right=right)


@tables.callback()
def list_tables(context: typer.Context, as_json: AsJson = False) -> None:
    """Show every table: rows, files, size, snapshots, what maintenance has to work off, and how it is written."""
    if context.invoked_subcommand is not None:
        return
    from pkm_pipelines.cli.output import ago
    from pkm_pipelines.operations.tables import overview

    with _open() as lake:
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
            _debt(one.debt),
        )
        for one in found
    ]
    _show(found, as_json, ("table", *right, "mode", "committed", "debt"), rows, right)


def _debt(limits: Sequence[Limit]) -> str | Text:
    """What is nearest to its limit, or everything that is past it and how to work it off."""
    from pkm_pipelines.cli.output import styled

    if passed := [limit for limit in limits if limit.is_passed]:
        return styled("; ".join(map(str, passed)), "yellow")
    first = next(iter(limits), None)
    return f"{first.share:.0%} ({first.name})" if first is not None and first.share >= WORTH_SAYING else ""


@tables.command()
def consumers(
    name: Annotated[str | None, typer.Argument(metavar="[TABLE]", help="Only those of this table.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show who follows which table, and how far behind it is."""
    from pkm_pipelines.cli.output import ago

    with _open() as lake:
        found = lake.tables.consumers(name, lambda output, followed: lake.vectors.watermark(output, followed))
    right = ("watermark", "snapshots behind", "rows behind")
    rows = [
        (one.table, one.name, one.kind, one.watermark, one.snapshots_behind, one.rows_behind, ago(one.behind_since))
        for one in found
    ]
    _show(found, as_json, ("table", "consumer", "kind", *right, "since"), rows, right)


@tables.command("explain")
def explain_table(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="The table, for example silver.processed_notes.")],
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many writes.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Say how the last writes to a table were carried out, and why: whole files, or deletes by position."""
    from pkm_pipelines.cli.output import print_json, print_table, say

    with _open() as lake:
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
    metadata: Annotated[
        str | None, typer.Argument(metavar="[METADATA]", help="URL of its newest metadata.json.")
    ] = None,
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
    with _open() as lake:
        if metadata is None:
            shared = share_table(lake, name, str(other))
            say(f"{name} in {shared.catalog}: {shared.outcome}. Write to it through this catalog only.")
            return
        snapshot = register_table(lake, name, metadata)
    say(f"{name} is registered at snapshot {snapshot or '(none)'}; only this catalog may write to it from now on.")


@table.callback()
def show_table(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The table, for example silver.processed_notes.")],
) -> None:
    """Look into one table, or change it: `pkm table NAME history`. Without a word, show its figures and columns."""
    context.obj = name
    if context.invoked_subcommand is None:
        stats(context)


@table.command()
def stats(context: typer.Context, as_json: AsJson = False) -> None:
    """Rows, files, sizes, and what the files say of each column."""
    from pkm_pipelines.cli.output import print_json, print_table, say

    name: str = context.obj
    with _open() as lake:
        found = lake.tables.stats(name)
    if as_json:
        print_json(found)
        return
    say(
        f"{name}: {found.rows:,} rows in {found.files:,} files ({found.bytes / 1e6:,.1f} MB), "
        f"{found.deleted_rows:,} more deleted by {found.delete_files:,} files; {found.snapshots:,} snapshots, "
        f"{found.manifests:,} manifests"
    )
    rows = [(one.name, one.type, one.nulls, one.lower, one.upper) for one in found.columns]
    print_table(("column", "type", "nulls", "least", "greatest"), rows, right=("nulls",))


@table.command()
def history(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many snapshots.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The snapshots that led to the present state, newest first."""
    with _open() as lake:
        found = lake.tables.history(context.obj)[:limit]
    right = ("snapshot", "added", "updated", "deleted", "rows")
    rows = [
        (
            one.snapshot_id, one.committed_at, one.operation, one.rows_added, one.rows_updated, one.rows_deleted,
            one.total_rows, ", ".join(one.tags),
        )
        for one in found
    ]  # fmt: skip
    _show(found, as_json, ("snapshot", "committed", "operation", *right[1:], "tags"), rows, right)


@table.command()
def files(context: typer.Context, as_json: AsJson = False) -> None:
    """The data files of the present state."""
    from pkm_pipelines.operations.tables import list_files

    with _open() as lake:
        found = list_files(lake, context.obj)
    right = ("rows", "bytes", "delete files")
    rows = [(one.partition, f"{one.rows:,}", f"{one.bytes:,}", one.delete_files, one.path) for one in found]
    _show(found, as_json, ("partition", *right, "path"), rows, right)


@table.command()
def partitions(context: typer.Context, as_json: AsJson = False) -> None:
    """Rows, files and bytes by partition."""
    with _open() as lake:
        found = lake.tables.stats(context.obj).partitions
    right = ("rows", "files", "bytes", "delete files")
    rows = [
        (
            ", ".join(f"{name}={value}" for name, value in one.values.items()) or "(none)",
            f"{one.rows:,}", f"{one.files:,}", f"{one.bytes:,}", one.delete_files,
        )
        for one in found
    ]  # fmt: skip
    _show(found, as_json, ("partition", *right), rows, right)


@table.command()
def schema(context: typer.Context, as_json: AsJson = False) -> None:
    """Columns, key, partitions and sort order."""
    from pkm_pipelines.cli.output import print_json, print_table, say
    from pkm_pipelines.operations.tables import shape

    with _open() as lake:
        found = shape(lake, context.obj)
    if as_json:
        print_json(found)
        return
    say(f"key {', '.join(found.key) or '(none)'}; partitions {', '.join(found.partitions) or '(none)'}")
    rows = [(one.id, one.name, one.type, "required" if one.required else "", one.doc) for one in found.columns]
    print_table(("id", "column", "type", "", "what it is"), rows, right=("id",))


@table.command()
def changes(
    context: typer.Context,
    since: Annotated[
        int | None, typer.Option("--since", metavar="SNAPSHOT", help="After this one; by default from the first on.")
    ] = None,
    until: Annotated[
        int | None, typer.Option("--until", metavar="SNAPSHOT", help="Up to this one; by default to the present.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", "-c", metavar="NAME", help="Only this column; may be repeated.")
    ] = None,
    net: Annotated[bool, typer.Option("--net", help="As one difference, not commit by commit.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many rows to show.")] = 100,
    as_json: AsJson = False,
) -> None:
    """The rows that came, changed and went between two snapshots."""
    from pkm_pipelines.operations.tables import first_rows

    with _open() as lake:
        reader = lake.tables.changes(context.obj, since, until, column, net=net)
        names = reader.schema.names
        found = first_rows(reader, limit)
    _show(found, as_json, names, [tuple(row.values()) for row in found], ())


@table.command()
def rollback(
    context: typer.Context,
    snapshot: Annotated[int, typer.Argument(metavar="SNAPSHOT", help="An ancestor of the present snapshot.")],
) -> None:
    """Go back to an earlier snapshot; what was derived from the later ones follows with the next run."""
    from pkm_pipelines.cli.output import say

    with _open() as lake:
        lake.tables.rollback(context.obj, snapshot)
    say(f"{context.obj} is at snapshot {snapshot} again; `pkm run` brings what follows it up to date.")


@table.command()
def tag(
    context: typer.Context,
    label: Annotated[
        str | None, typer.Argument(metavar="[TAG]", help="Its name; without one, tags are listed.")
    ] = None,
    snapshot: Annotated[
        int | None, typer.Option("--snapshot", metavar="SNAPSHOT", help="Which one; the present one by default.")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Drop the tag.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep a snapshot from expiring, under a name."""
    name: str = context.obj
    with _open() as lake:
        if label is not None and drop:
            lake.tables.untag(name, label)
        elif label is not None:
            lake.tables.tag(name, label, snapshot if snapshot is not None else _present(lake, name))
        found = lake.tables.tags(name)
    _show(found, as_json, ("tag", "snapshot"), list(found.items()), ("snapshot",))


@table.command()
def branch(
    context: typer.Context,
    label: Annotated[
        str | None, typer.Argument(metavar="[BRANCH]", help="Its name; without one, branches are listed.")
    ] = None,
    snapshot: Annotated[
        int | None, typer.Option("--snapshot", metavar="SNAPSHOT", help="Where it starts; now by default.")
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Make the branch what the table is.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Drop the branch and what was written to it alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start, publish or drop a branch. It is published only if nothing else was written meanwhile."""
    if publish and drop:
        raise typer.BadParameter("--publish and --drop exclude each other")
    name: str = context.obj
    with _open() as lake:
        if label is not None:
            if publish:
                lake.tables.publish(name, label)
            elif drop:
                lake.tables.drop_branch(name, label)
            else:
                lake.tables.branch(name, label, snapshot)
        found = lake.tables.branches(name)
    _show(found, as_json, ("branch", "snapshot"), list(found.items()), ("snapshot",))


@table.command()
def evolve(
    context: typer.Context,
    add: Annotated[
        list[str] | None, typer.Option("--add", metavar="NAME:TYPE", help="A new column, null in rows that are there.")
    ] = None,
    rename: Annotated[list[str] | None, typer.Option("--rename", metavar="OLD=NEW", help="Another name.")] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", metavar="NAME", help="A column goes.")] = None,
    promote: Annotated[
        list[str] | None, typer.Option("--promote", metavar="NAME:TYPE", help="A wider type: int64, float64.")
    ] = None,
    optional: Annotated[
        list[str] | None, typer.Option("--optional", metavar="NAME", help="It may be null from now on.")
    ] = None,
    partition: Annotated[
        list[str] | None,
        typer.Option("--partition", metavar="TRANSFORM(NAME)", help="Partitions of new files: 'bucket[16](id)'."),
    ] = None,
) -> None:
    """Change columns and partitions, all in one commit; columns go by their names before it.

    No file is rewritten; older ones read as they should.
    """
    from pkm_pipelines.cli.output import say
    from pkm_pipelines.operations.tables import parse_changes

    found = parse_changes(
        add=add or (), rename=rename or (), drop=drop or (), promote=promote or (), optional=optional or (),
        partition=partition,
    )  # fmt: skip
    if not found:
        raise typer.BadParameter("say what to change: --add, --rename, --drop, --promote, --optional or --partition")
    with _open() as lake:
        lake.tables.evolve(context.obj, *found)
    say(f"{context.obj}: changed.")


@table.command()
def mode(
    context: typer.Context,
    wanted: Annotated[
        str | None, typer.Argument(metavar="[MODE]", help="copy-on-write, merge-on-read or hybrid.")
    ] = None,
) -> None:
    """Show or set how merges write: whole files, deletes by position, or what costs less each time."""
    from pkm_pipelines.cli.output import say
    from pkm_pipelines.operations.tables import parse_mode

    with _open() as lake:
        if wanted is not None:
            lake.tables.set_mode(context.obj, parse_mode(wanted))
        say(f"{context.obj}: {lake.tables.explain(context.obj).mode}")


@table.command()
def explain(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many writes.")] = 10,
    as_json: AsJson = False,
) -> None:
    """The same as `pkm tables explain NAME`."""
    explain_table(context.obj, limit, as_json)


def _present(lake: Lakehouse, name: str) -> int:
    from pkm_pipelines.model.errors import SnapshotNotFoundError

    snapshot = lake.iceberg.snapshot_id(name)
    if snapshot is None:
        raise SnapshotNotFoundError(f"table {name} has no snapshot yet: nothing was written to it")
    return snapshot
