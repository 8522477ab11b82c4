"""`pkm demo`: a lakehouse from a vault, and three questions to it, to see in a minute what this is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pkm_pipelines.lakehouse import Lakehouse

# A vault may bring its own questions: one a line, in a file that is no note.
QUESTIONS_FILE = ".pkm-demo.json"
_QUESTIONS = 3
_HITS = 3


def demo(
    source: Annotated[
        Path, typer.Option("--source", metavar="PATH", help="A folder of notes or a git repository.")
    ] = Path("examples/vault"),
) -> None:
    """Build a lakehouse from a vault and search it.

    Without `--source` it is the example vault. It gets settings and data of its own in `.pkm/demo-NAME`, and does
    not touch the notes.
    """
    import os

    from pkm_pipelines.cli.admin import print_status
    from pkm_pipelines.cli.instance import ROOT
    from pkm_pipelines.cli.output import count, say
    from pkm_pipelines.cli.run import run_once
    from pkm_pipelines.cli.template import detect_source, write_settings
    from pkm_pipelines.lakehouse import Lakehouse
    from pkm_pipelines.settings import FILE_NAME, load

    # The example lies in the checkout, wherever the command is called.
    path = source.expanduser()
    found = detect_source(path if path.exists() else ROOT / path)
    home = Path(".pkm").absolute() / f"demo-{found.name}"
    file = write_settings(home / FILE_NAME, found, force=True)
    os.environ["PKM_CONFIG"] = str(file)
    say(f"Building a lakehouse in {home} from {found.path}")
    with Lakehouse.open(load(file)) as lake:
        if run_once(lake).nothing_to_do:
            print_status(lake.status())
        questions = _questions(found.path, lake)
        for question in questions:
            _ask(lake, question)
        say(f"{count(len(questions), 'search', 'searches')} answered. More:")
    for command in ("search 'your question'", "sql 'SHOW TABLES'", "status", "dev"):
        say(f"  .venv/bin/pkm --config {file} {command}")


def _ask(lake: Lakehouse, question: str) -> None:
    import time

    from rich.text import Text

    from pkm_pipelines.cli.output import clean, console
    from pkm_pipelines.cli.query import print_hits

    started = time.perf_counter()
    hits = lake.search(question, k=_HITS)
    milliseconds = (time.perf_counter() - started) * 1000
    console().print(
        Text.assemble("\n", ("? ", "bold green"), (clean(question), "bold"), (f"  {milliseconds:.0f} ms\n", "dim"))
    )
    print_hits(hits)


def _questions(vault: Path, lake: Lakehouse) -> list[str]:
    """Three questions: the vault's own, else its most frequent key phrases."""
    own = vault / QUESTIONS_FILE
    if own.is_file():
        return [str(question) for question in json.loads(own.read_text(encoding="utf-8"))][:_QUESTIONS]
    rows = lake.sql(
        """
        SELECT mode(label) AS label
        FROM silver.extracted_concepts
        GROUP BY concept
        ORDER BY count(*) FILTER (length(label) > 6 AND contains(label, ' ')) DESC, sum(score) DESC, concept
        """,
        limit=_QUESTIONS,
    )
    return [str(label) for label in rows["label"].to_pylist()] or ["What is this about?"]
