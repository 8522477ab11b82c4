"""`pkm table NAME …`: what it takes, what it refuses and with which exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pkm_pipelines import settings
from pkm_pipelines.cli.main import app
from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.schema import Column, TableSpec
from pkm_pipelines.operations.cuts import take_cut

Call = Callable[..., Any]
NOTES = "silver.processed_notes"
SCORES = TableSpec(
    layer="gold",
    table="scores",
    doc="A user's own.",
    kind="state",
    key=("id",),
    columns=(Column(1, "id", pa.string(), "Who", True), Column(2, "mark", pa.int32(), "How well")),
)


@pytest.fixture(scope="module")
def home(ram_folder: Path) -> Iterator[Path]:
    home = ram_folder / "table"
    (home / "vault").mkdir(parents=True)
    (home / "pkm.toml").write_text(
        'runtime_dir = "run"\n[embedder]\nmodel = "hashing"\n[state_service]\nidle_seconds = 20\n'
        '[[sources]]\nname = "vault"\npath = "vault"\n'
    )
    (home / "vault" / "Note.md").write_text("# Note\n\nSee [[Other]].\n")
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        lake.update()
        take_cut(lake, "a cut")
        lake.tables.create(SCORES)
        lake.tables.merge(SCORES.name, pa.table({"id": ["a", "b"], "mark": pa.array([1, 2], pa.int32())}))
    yield home


@pytest.fixture
def call(home: Path) -> Call:
    def call(*words: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, list(words), env={"PKM_CONFIG": str(home / "pkm.toml")})
        assert done.exit_code == code, f"{words}\n{done.output}\n{done.exception!r}"
        return json.loads(done.stdout) if "--json" in words else done.output

    return call


def unboxed(output: str) -> str:
    """What is said of wrong usage, without the frame that it is drawn in."""
    return " ".join(re.sub("[╭╮╰╯│─]", " ", output).split())


def test_names_of_the_project_s_own_are_neither_given_nor_dropped(call: Call, home: Path) -> None:
    before = call("table", NOTES, "tag", "--json")
    own = [tag for tag in before if tag.startswith(("pkm-consumer-", "cut-"))]
    assert {tag.split("-")[0] for tag in own} == {"pkm", "cut"}
    for words in (*([tag, "--drop"] for tag in own), ["cut-1"], ["pkm-consumer-x.next"]):
        assert "leave them alone" in unboxed(call("table", NOTES, "tag", *words, code=2))
    for blank in ("", " "):
        assert "the name is empty" in call("table", NOTES, "tag", blank, code=2)
        assert "the name is empty" in call("table", NOTES, "branch", blank, code=2)
    call("table", NOTES, "branch", "cut-1", code=2)
    assert call("table", NOTES, "tag", "--json") == before
    assert list(call("table", NOTES, "branch", "--json")) == ["main"]
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        lake.tables.branch(SCORES.name, "cut-1")
        lake.tables.tag(SCORES.name, "", lake.tables.history(SCORES.name)[0].snapshot_id)
    # What should not be there can be dropped.
    assert list(call("table", SCORES.name, "branch", "cut-1", "--drop", "--json")) == ["main"]
    assert call("table", SCORES.name, "tag", "", "--drop", "--json") == {}


def test_what_is_not_there_is_not_dropped(call: Call) -> None:
    call("table", SCORES.name, "tag", "one")
    call("table", SCORES.name, "branch", "other")
    for words in (["tag", "nope"], ["tag", ""], ["tag", "other"], ["branch", "nope"], ["branch", "one"]):
        assert "error: table gold.scores has no" in call("table", SCORES.name, *words, "--drop", code=1)
    assert "there are: one)" in call("table", SCORES.name, "tag", "nope", "--drop", code=1)
    for words in (["--drop"], ["--snapshot", "1"], ["one", "--drop", "--snapshot", "1"]):
        call("table", SCORES.name, "tag", *words, code=2)
    for words in (["--drop"], ["--publish"], ["--snapshot", "1"], ["other", "--publish", "--snapshot", "1"]):
        call("table", SCORES.name, "branch", *words, code=2)
    assert call("table", SCORES.name, "tag", "one", "--drop", "--json") == {}
    assert list(call("table", SCORES.name, "branch", "other", "--drop", "--json")) == ["main"]


@pytest.mark.parametrize(
    "words",
    [
        ["search", ""],
        ["search", "x", "--tag", ""],
        ["search", "x", "--tag", "#"],
        ["search", "x", "--path", " "],
        ["sql", " \n"],
        ["note", ""],
        ["table", SCORES.name, "mode", "bogus"],
        ["table", SCORES.name, "mode", "--reads", "x"],
        ["table", SCORES.name, "mode", "--reads", "nan"],
        ["table", SCORES.name, "evolve", "--add", "foo"],
        ["table", SCORES.name, "evolve", "--rename", "a"],
        ["table", SCORES.name, "evolve", "--rename", "a= "],
        ["table", SCORES.name, "evolve", "--optional", ""],
        ["table", SCORES.name, "evolve", "--add", " :string"],
        ["table", SCORES.name, "evolve", "--partition", "bucket(id)"],
        ["table", SCORES.name, "evolve", "--partition", "bucket[0](id)"],
        ["table", SCORES.name, "evolve", "--partition", "decade(id)"],
    ],
)
def test_words_that_can_mean_nothing_are_wrong_usage(call: Call, words: list[str]) -> None:
    assert "Usage: " in call(*words, code=2)


def test_vectors_are_sent_where_they_are_shown(call: Call) -> None:
    name = next(one["name"] for one in call("tables", "--json") if one["name"].startswith("vectors."))
    for words in ([], ["history"], ["tag", "x"]):
        told = call("table", name, *words, code=1)
        assert "Lance table" in told and "`pkm tables`" in told
    assert call("sql", f"SELECT count(*) AS n FROM {name}", "--json") == call(
        "sql", "SELECT count(*) AS n FROM vectors.note_embeddings", "--json"
    )
    for one in (name, "vectors.note_embeddings"):
        assert "no table" not in call("maintain", "--table", one, "--dry-run")


def test_a_table_without_a_word_takes_the_options_of_stats(call: Call) -> None:
    assert call("table", SCORES.name, "--json") == call("table", SCORES.name, "stats", "--json")
    assert call("table", SCORES.name, "--json")["rows"] == 2
    assert "rollback" in call("table", SCORES.name, "--help")
    assert "No such option: --nope" in call("table", SCORES.name, "--nope", code=2)


def test_the_mode_tells_the_reads_it_goes_by(call: Call) -> None:
    words = ("table", SCORES.name, "mode")
    assert call(*words, "copy-on-write") == f"{SCORES.name}: copy-on-write\n"
    assert call(*words, "--json") == {"table": SCORES.name, "mode": "copy-on-write", "reads_per_write": None}
    for refused in (["--reads", "50"], ["merge-on-read", "--reads", "50"]):
        assert "only hybrid does: `pkm table gold.scores mode hybrid --reads 50`" in call(*words, *refused, code=1)
    assert call(*words, "--json")["mode"] == "copy-on-write"
    assert call(*words, "--reads", "counted") == f"{SCORES.name}: copy-on-write\n"
    assert call(*words, "hybrid") == f"{SCORES.name}: hybrid, reads for each write counted\n"
    assert call(*words, "hybrid", "--reads", "50") == f"{SCORES.name}: hybrid, reads for each write set to 50\n"
    assert call(*words, "--json") == {"table": SCORES.name, "mode": "hybrid", "reads_per_write": 50}
    assert call(*words, "--reads", "counted", "--json")["reads_per_write"] is None
