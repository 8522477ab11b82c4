"""What commands share: their settings, and options that mean the same everywhere."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from pkm_pipelines.lakehouse import Lakehouse
    from pkm_pipelines.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")]


def load_settings() -> Settings:
    """The settings that count here.

    Raises `SettingsError` if they are wrong, or if there is neither a file nor a variable: a lakehouse that nobody
    asked for would be made in a folder that nobody meant.
    """
    from pkm_pipelines.model.errors import SettingsError
    from pkm_pipelines.settings import OTHER_VARIABLES, PREFIX, find_file, load

    file = find_file()
    if file is None and not any(name.startswith(PREFIX) and name not in OTHER_VARIABLES for name in os.environ):
        raise SettingsError(
            "no pkm.toml here or above: write one with `pkm init PATH-OF-YOUR-NOTES`, or name it: --config"
        )
    return load(file)


def open_lake() -> Lakehouse:
    """The lakehouse of these settings, to be closed by `with`."""
    settings = load_settings()
    from pkm_pipelines.lakehouse import Lakehouse

    return Lakehouse.open(settings)


def check_given(word: str | None, what: str, wanted: str, *, beside: str = "") -> None:
    """Raise for an argument or option that is given and holds nothing, or nothing but the characters `beside`."""
    if word is not None and not word.strip().strip(beside):
        raise typer.BadParameter(f"{word!r} is empty: give {wanted}", param_hint=what)


@contextmanager
def checking_words() -> Generator[None]:
    """What is wrong with the words of a command is wrong usage, and no failure."""
    from pkm_pipelines.model.errors import PkmError

    try:
        yield
    except PkmError as error:
        raise typer.BadParameter(str(error)) from None


def show(
    value: Any, as_json: bool, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str]
) -> None:
    """Print `value` as JSON, or `rows` of it as a table with the columns `right` aligned so."""
    from pkm_pipelines.cli.output import print_json, print_table

    if as_json:
        print_json(value)
    else:
        print_table(columns, rows, right=right)
