"""docs/commands.md and docs/settings.md, made from the commands and settings themselves.

`python -m pkm_pipelines.cli.reference` writes them; with `--check` it fails if they are not what it would write.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_args

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pkm_pipelines.cli.main import app
from pkm_pipelines.settings import (
    OTHER_VARIABLES,
    EmbedderSettings,
    MaintenanceSettings,
    Settings,
    SourceSettings,
    StateSettings,
    TablesSettings,
    variable,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTICE = "<!-- Written by `python -m pkm_pipelines.cli.reference`; change the code, not this file. -->"

# What each command looks like in use; a command without an example fails the tests.
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "init": ("pkm init ~/notes",),
    "run": ("pkm run", "pkm run --watch", "pkm run --source notes --from 2024-01-01 --to 2024-03-31"),
    "dev": ("pkm dev --port 3001",),
    "search": (
        "pkm search 'how do I keep a starter alive'",
        "pkm search 'rye and acid' --tag bread --path Loaves -k 3 --json",
    ),
    "sql": (
        "pkm sql 'SHOW TABLES'",
        "pkm sql 'SELECT title, pagerank FROM gold.note_metrics ORDER BY pagerank DESC LIMIT 10'",
        "pkm sql --json - < question.sql",
    ),
    "note": ("pkm note 'Loaves/Country loaf'", "pkm note Agnes --json"),
    "status": ("pkm status", "pkm status --problems --json"),
    "doctor": ("pkm doctor",),
    "demo": ("pkm demo", "pkm demo --source ~/notes"),
    "maintain": ("pkm maintain --dry-run", "pkm maintain compact --table silver.processed_notes", "pkm maintain all"),
    "tables": ("pkm tables", "pkm tables --json"),
    "tables consumers": ("pkm tables consumers silver.processed_notes",),
    "tables explain": ("pkm tables explain", "pkm tables explain silver.knowledge_graph -n 3"),
    "tables register": (
        "pkm tables register gold.sales s3://bucket/sales/metadata/00012-5f.metadata.json",
        "pkm tables register gold.note_metrics --in glue://",
    ),
    "tables unregister": ("pkm tables unregister gold.sales",),
    "warehouse": ("pkm warehouse rebuild-catalog --dry-run",),
    "warehouse move": ("pkm warehouse move s3://bucket/warehouse --dry-run",),
    "warehouse rebuild-catalog": ("pkm warehouse rebuild-catalog --dry-run",),
    "warehouse migrate": ("pkm warehouse migrate --dry-run",),
    "table": ("pkm table silver.processed_notes",),
    "table stats": ("pkm table silver.processed_notes stats --json",),
    "table history": ("pkm table silver.processed_notes history -n 5",),
    "table files": ("pkm table bronze.raw_notes files --json",),
    "table partitions": ("pkm table bronze.raw_notes partitions",),
    "table schema": ("pkm table gold.note_metrics schema",),
    "table changes": ("pkm table silver.processed_notes changes --column path --net -n 10",),
    "table rollback": ("pkm table gold.note_metrics rollback 6378784946684399877",),
    "table tag": ("pkm table gold.note_metrics tag before-the-move", "pkm table gold.note_metrics tag old --drop"),
    "table branch": ("pkm table gold.note_metrics branch trial", "pkm table gold.note_metrics branch trial --publish"),
    "table evolve": (
        "pkm table gold.scores evolve --add weight:float64 --rename mark=score",
        "pkm table gold.scores evolve --zorder id --zorder score",
    ),
    "table mode": ("pkm table silver.knowledge_graph mode hybrid", "pkm table gold.scores mode hybrid --reads 50"),
    "table explain": ("pkm table silver.knowledge_graph explain",),
}


def commands_page() -> str:
    """The text of docs/commands.md."""
    group: Any = typer.main.get_command(app)
    parts = [
        "# The `pkm` command",
        NOTICE,
        cleandoc("""
            Data goes to stdout; progress, hints and errors go to stderr. `--json` prints one JSON document: times are
            ISO 8601 in UTC, intervals as DuckDB writes them, bytes base64, decimals strings, NaN and infinities null.
            Colours are left out where there is no terminal, or where `NO_COLOR` is set. `PKM_DEBUG=1` shows the
            traceback of an error.

            | exit code | meaning |
            |---|---|
            | 0 | done |
            | 1 | failed: one line says what and why |
            | 2 | wrong usage, or wrong settings |
            | 130 | interrupted (Ctrl-C); what was committed is kept |
        """),
        "## Options of `pkm` itself",
        _parameters(group),
    ]
    for name, command in commands(group).items():
        summary, _, details = cleandoc(command.help or "").partition("\n\n")
        pieces = command.collect_usage_pieces(typer.Context(command))
        usage = " ".join(["pkm", *_words(name), *(piece.strip("{}") for piece in pieces)])
        examples = "\n".join(EXAMPLES[name])
        parts += [f"## `pkm {name}`", summary, details, f"    {usage}", _parameters(command), f"```sh\n{examples}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def commands(group: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command by its words (`table history`), groups before what is in them."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found[" ".join((*path, name))] = command
        if hasattr(command, "commands"):
            found |= commands(command, (*path, name))
    return found


def _words(name: str) -> list[str]:
    first, _, rest = name.partition(" ")
    return [first, *(["NAME"] if first == "table" and rest else []), *([rest] if rest else [])]


def _parameters(command: Any) -> str:
    rows = ["| option | meaning | default |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name in ("install_completion", "show_completion"):
            continue
        is_option = parameter.param_type_name == "option"
        names = ", ".join(f"`{name}`" for name in parameter.opts) if is_option else f"`{parameter.metavar}`"
        if is_option and not parameter.is_flag:
            shown = parameter.metavar or parameter.display_type(typer.Context(command)).strip("<>")
            names += f" {shown}"
        default = parameter.default
        empty = default is None or default is False
        rows.append(f"| {_cell(names)} | {_cell(parameter.help)} | {'' if empty else f'`{default}`'} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def settings_page() -> str:
    """The text of docs/settings.md."""
    others = "\n".join(f"| `{name}` | {_cell(text)} |" for name, text in OTHER_VARIABLES.items())
    parts = [
        "# Settings",
        NOTICE,
        cleandoc(f"""
            Each is read from its environment variable, else from `pkm.toml`, else it has its default. `pkm.toml` is the
            one that `--config` or `PKM_CONFIG` names, else the nearest at or above the present folder. `pkm init`
            writes one. Relative paths start from `home`, which is the folder of `pkm.toml`; `~` is your home folder.
            Stores are addressed by `file:///…` or `s3://bucket/prefix`.

            A list or table in a variable is JSON: `{variable("sources")}='[{{"name": "notes", "path": "~/notes"}}]'`.

            Credentials are no settings. `s3://` takes `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
            `AWS_SESSION_TOKEN`, `AWS_REGION` and `AWS_ENDPOINT_URL` from the environment. A password in the URL of the
            catalog is masked wherever it would be shown.
        """),
        "## Top level",
        _fields(Settings, (), skip=("sources", "embedder", "state_service", "tables", "maintenance")),
        "## `[[sources]]`",
        "One table for each source.",
        _fields(SourceSettings, None),
        "## `[embedder]`",
        _fields(EmbedderSettings, ("embedder",)),
        "## `[state_service]`",
        _fields(StateSettings, ("state_service",)),
        "## `[tables]`",
        _fields(TablesSettings, ("tables",)),
        "## `[maintenance]`",
        _fields(MaintenanceSettings, ("maintenance",)),
        "## Other variables",
        f"| variable | meaning |\n|---|---|\n{others}",
    ]
    return "\n\n".join(parts) + "\n"


_STORE_DEFAULTS = {
    "home": "folder of `pkm.toml`",
    "warehouse": "`.pkm/warehouse`",
    "catalog": "`sqlite:///….pkm/catalog.db`",
    "vectors": "`.pkm/vectors`",
    "state": "`.pkm/state`",
    "objects": "`.pkm/objects`",
}


def _fields(model: type[BaseModel], path: tuple[str, ...] | None, skip: tuple[str, ...] = ()) -> str:
    variables = path is not None
    rows = ["| setting | variable | meaning | default |", "|---|---|---|---|"]
    if not variables:
        rows = ["| setting | meaning | default |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        cells = [f"`{name}`"]
        if path is not None:
            cells.append(f"`{variable(*path, name)}`")
        cells += [_cell(" ".join([field.description or "", *_limits(field)])), _default(model, name, field)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _default(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if model is Settings and name in _STORE_DEFAULTS:
        return _STORE_DEFAULTS[name]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _limits(field: FieldInfo) -> Iterator[str]:
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        yield f"One of {', '.join(f'`{choice}`' for choice in choices)}."
    bounds = {
        name: getattr(item, name) for item in field.metadata for name in ("gt", "ge", "lt", "le") if hasattr(item, name)
    }
    words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    if bounds:
        yield f"({', '.join(f'{words[name]} {value:,}' for name, value in bounds.items())})"


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", r"\|").split())


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    return {DOCS / "commands.md": commands_page(), DOCS / "settings.md": settings_page()}


def stale_pages() -> list[Path]:
    """The pages whose file is not what it should be."""
    return [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` only compare; returns an exit code."""
    if arguments == ["--check"]:
        stale = stale_pages()
        for path in stale:
            typer.echo(f"error: {path.relative_to(DOCS.parent)} is stale: run `make docs`", err=True)
        return int(bool(stale))
    if arguments:
        typer.echo("usage: python -m pkm_pipelines.cli.reference [--check]", err=True)
        return 2
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
