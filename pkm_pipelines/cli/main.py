"""The `pkm` command.

Each command imports what it needs when it runs, so that `pkm --help` answers at once. Exit codes: 0 done, 1 failed,
2 wrong usage or wrong settings, 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pkm_pipelines import __version__
from pkm_pipelines.cli import admin, demo, dev, maintain, query, run, table, tables, warehouse

FAILED, USAGE, INTERRUPTED = 1, 2, 130


class Group(TyperGroup):
    """Turns the project's errors into one line and an exit code; anything else is a defect and shows its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from pkm_pipelines.model.errors import CancelledError, PkmError, SettingsError

        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, CancelledError) as error:
            _tell(error, str(error) or "interrupted; what was committed is kept")
            raise typer.Exit(INTERRUPTED) from error
        except PkmError as error:
            _tell(error, str(error))
            raise typer.Exit(USAGE if isinstance(error, SettingsError) else FAILED) from error
        except BrokenPipeError as error:
            # `pkm sql … | head`: whoever read has read enough. Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from error


def _tell(error: BaseException, message: str) -> None:
    from pkm_pipelines.cli.output import fail
    from pkm_pipelines.model.urls import redacted

    if os.environ.get("PKM_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    fail(redacted(message))


app = typer.Typer(
    name="pkm",
    cls=Group,
    help="Your notes as a lakehouse that you own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pkm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The settings file (default: the nearest pkm.toml).")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Your notes as a lakehouse that you own."""
    if config is not None:
        os.environ["PKM_CONFIG"] = str(config.expanduser().absolute())


for command in (
    admin.init,
    run.run,
    dev.dev,
    query.search,
    query.sql,
    query.note,
    admin.status,
    admin.doctor,
    demo.demo,
    maintain.maintain,
):
    app.command()(command)
app.add_typer(tables.tables, name="tables")
app.add_typer(table.table, name="table")
app.add_typer(warehouse.warehouse, name="warehouse")


def main() -> None:
    """The entry point."""
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be valid UTF-8, and a terminal need not take all of Unicode.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # text streams, in a command
    try:
        app()
    finally:
        # Python ends with full collections, which take a second over all that Dagster imports. Every store is closed
        # by its context manager; the rest goes with the process.
        gc.freeze()


if __name__ == "__main__":
    main()
