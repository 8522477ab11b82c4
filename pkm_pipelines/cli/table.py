"""`pkm table NAME …`: one table looked into, or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pkm_pipelines.cli.common import AsJson, checking_words, open_lake, show
from pkm_pipelines.cli.tables import explain_table

if TYPE_CHECKING:
    from pkm_pipelines.lakehouse import Lakehouse


class _Words(TyperGroup):
    """`pkm table NAME --json` is `pkm table NAME stats --json`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        is_option = args[0].startswith("-") and args[0] not in ctx.help_option_names
        return super().resolve_command(ctx, ["stats", *args] if is_option else args)


table = typer.Typer(cls=_Words, invoke_without_command=True)


@table.callback()
def show_table(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The table, for example silver.processed_notes.")],
) -> None:
    """Look into one table, or change it: `pkm table NAME history`.

    Without a word it shows figures and columns, as `stats` does, with the same options.
    """
    from pkm_pipelines.operations.tables import check_has_history

    check_has_history(name)
    context.obj = name
    if context.invoked_subcommand is None:
        stats(context)


@table.command()
def stats(context: typer.Context, as_json: AsJson = False) -> None:
    """Rows, files, sizes, and what the files say of each column."""
    from pkm_pipelines.cli.output import print_json, print_table, say

    name: str = context.obj
    with open_lake() as lake:
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
    with open_lake() as lake:
        found = lake.tables.history(context.obj)[:limit]
    right = ("snapshot", "added", "updated", "deleted", "rows")
    rows = [
        (
            one.snapshot_id, one.committed_at, one.operation, one.rows_added, one.rows_updated, one.rows_deleted,
            one.total_rows, ", ".join(one.tags),
        )
        for one in found
    ]  # fmt: skip
    show(found, as_json, ("snapshot", "committed", "operation", *right[1:], "tags"), rows, right)


@table.command()
def files(context: typer.Context, as_json: AsJson = False) -> None:
    """The data files of the present state."""
    from pkm_pipelines.operations.tables import list_files

    with open_lake() as lake:
        found = list_files(lake, context.obj)
    right = ("rows", "bytes", "delete files")
    rows = [(one.partition, f"{one.rows:,}", f"{one.bytes:,}", one.delete_files, one.path) for one in found]
    show(found, as_json, ("partition", *right, "path"), rows, right)


@table.command()
def partitions(context: typer.Context, as_json: AsJson = False) -> None:
    """Rows, files and bytes by partition."""
    with open_lake() as lake:
        found = lake.tables.stats(context.obj).partitions
    right = ("rows", "files", "bytes", "delete files")
    rows = [
        (
            ", ".join(f"{name}={value}" for name, value in one.values.items()) or "(none)",
            f"{one.rows:,}", f"{one.files:,}", f"{one.bytes:,}", one.delete_files,
        )
        for one in found
    ]  # fmt: skip
    show(found, as_json, ("partition", *right), rows, right)


@table.command()
def schema(context: typer.Context, as_json: AsJson = False) -> None:
    """Columns, key, partitions and sort order."""
    from pkm_pipelines.cli.output import print_json, print_table, say
    from pkm_pipelines.operations.tables import shape

    with open_lake() as lake:
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

    with open_lake() as lake:
        reader = lake.tables.changes(context.obj, since, until, column, net=net)
        names = reader.schema.names
        found = first_rows(reader, limit)
    show(found, as_json, names, [tuple(row.values()) for row in found], ())


@table.command()
def rollback(
    context: typer.Context,
    snapshot: Annotated[int, typer.Argument(metavar="SNAPSHOT", help="An ancestor of the present snapshot.")],
) -> None:
    """Go back to an earlier snapshot; what was derived from the later ones follows with the next run.

    What sources had told a bronze table since then they tell again in that run, as it is by then.
    """
    from pkm_pipelines.cli.output import say
    from pkm_pipelines.operations.rollback import roll_back

    with open_lake() as lake:
        roll_back(lake, context.obj, snapshot)
    say(f"{context.obj} is at snapshot {snapshot} again; `pkm run` brings what follows it up to date.")


@table.command()
def tag(
    context: typer.Context,
    label: Annotated[str | None, typer.Argument(metavar="TAG", help="Its name; without one, tags are listed.")] = None,
    snapshot: Annotated[
        int | None, typer.Option("--snapshot", metavar="SNAPSHOT", help="Which one; the present one by default.")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Drop the tag.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep a snapshot from expiring, under a name of yours.

    The project's own tags are listed beside them; they come and go by themselves.
    """
    from pkm_pipelines.operations.labels import check_label, check_not_own, drop_tag

    _check_words(label, "TAG", {"--drop": drop, "--snapshot": snapshot is not None})
    if label is not None:
        with checking_words():
            (check_not_own if drop else check_label)(label)
    name: str = context.obj
    with open_lake() as lake:
        if label is not None and drop:
            drop_tag(lake, name, label)
        elif label is not None:
            lake.tables.tag(name, label, snapshot if snapshot is not None else _present(lake, name))
        found = lake.tables.tags(name)
    show(found, as_json, ("tag", "snapshot"), list(found.items()), ("snapshot",))


@table.command()
def branch(
    context: typer.Context,
    label: Annotated[
        str | None, typer.Argument(metavar="BRANCH", help="Its name; without one, branches are listed.")
    ] = None,
    snapshot: Annotated[
        int | None, typer.Option("--snapshot", metavar="SNAPSHOT", help="Where it starts; now by default.")
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Make the branch what the table is.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Drop the branch and what was written to it alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start, publish or drop a branch. It is published only if nothing else was written meanwhile."""
    from pkm_pipelines.operations.labels import check_label, drop_branch

    _check_words(label, "BRANCH", {"--drop": drop, "--publish": publish, "--snapshot": snapshot is not None})
    if label is not None and not drop:  # a branch with a name of the project's own is in its way, and may go
        with checking_words():
            check_label(label)
    name: str = context.obj
    with open_lake() as lake:
        if label is not None:
            if publish:
                lake.tables.publish(name, label)
            elif drop:
                drop_branch(lake, name, label)
            else:
                lake.tables.branch(name, label, snapshot)
        found = lake.tables.branches(name)
    show(found, as_json, ("branch", "snapshot"), list(found.items()), ("snapshot",))


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
    zorder: Annotated[
        list[str] | None,
        typer.Option("--zorder", metavar="NAME", help="Compaction lays rows out by the z-order of such columns."),
    ] = None,
) -> None:
    """Change columns, partitions and layout, all in one commit; columns go by their names before it.

    No file is rewritten; older ones read as they should.
    """
    from pkm_pipelines.cli.output import say
    from pkm_pipelines.operations.tables import parse_changes

    with checking_words():
        found = parse_changes(
            add=add or (), rename=rename or (), drop=drop or (), promote=promote or (), optional=optional or (),
            partition=partition, zorder=zorder,
        )  # fmt: skip
    if not found:
        raise typer.BadParameter(
            "say what to change: --add, --rename, --drop, --promote, --optional, --partition or --zorder"
        )
    with open_lake() as lake:
        lake.tables.evolve(context.obj, *found)
    say(f"{context.obj}: changed.")


@table.command()
def mode(
    context: typer.Context,
    wanted: Annotated[
        str | None, typer.Argument(metavar="MODE", help="copy-on-write, merge-on-read or hybrid.")
    ] = None,
    reads: Annotated[
        str | None,
        typer.Option(metavar="N|counted", help="Reads for each write that hybrid goes by, instead of counting them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show or set how merges write: whole files, deletes by position, or what costs less each time."""
    from pkm_pipelines.cli.output import print_json, say
    from pkm_pipelines.operations.tables import parse_mode, parse_reads, set_mode

    with checking_words():
        write_mode = None if wanted is None else parse_mode(wanted)
        reads_per_write = None if reads is None else parse_reads(reads)
    with open_lake() as lake:
        if reads is not None:
            set_mode(lake, context.obj, write_mode, reads_per_write)
        elif write_mode is not None:
            lake.tables.set_mode(context.obj, write_mode)
        found = lake.tables.explain(context.obj)
    if as_json:
        print_json({"table": found.table, "mode": found.mode, "reads_per_write": found.reads_per_write})
        return
    told = "counted" if found.reads_per_write is None else f"set to {found.reads_per_write:g}"
    say(f"{found.table}: {found.mode}" + (f", reads for each write {told}" if found.mode == "hybrid" else ""))


@table.command()
def explain(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many writes.")] = 10,
    as_json: AsJson = False,
) -> None:
    """The same as `pkm tables explain NAME`."""
    explain_table(context.obj, limit, as_json)


def _check_words(label: str | None, what: str, given: dict[str, bool]) -> None:
    """Raise for options that want a name, and there is none, or that exclude each other."""
    options = [option for option, is_given in given.items() if is_given]
    if label is None and options:
        raise typer.BadParameter(f"{' and '.join(options)} without {what}: name it")
    if len(options) > 1:
        raise typer.BadParameter(f"{' and '.join(options)} exclude each other")


def _present(lake: Lakehouse, name: str) -> int:
    from pkm_pipelines.model.errors import SnapshotNotFoundError

    snapshot = lake.iceberg.snapshot_id(name)
    if snapshot is None:
        raise SnapshotNotFoundError(f"table {name} has no snapshot yet: nothing was written to it")
    return snapshot
