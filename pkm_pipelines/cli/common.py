"""What commands share: their settings, and options that mean the same everywhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
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
