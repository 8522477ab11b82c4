"""`pkm tables`, `pkm table NAME …` and `pkm maintain` over a small lakehouse."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pkm_pipelines import settings
from pkm_pipelines.cli.main import app
from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.schema import Column, TableSpec
from pkm_pipelines.operations import migrations
from pkm_pipelines.operations.migrations import Migration, Registry, Step, migrate, plan_migrations
from tests.support.odd_tables import delete_by_equality, lose_files

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
    home = ram_folder / "tables"
    (home / "vault").mkdir(parents=True)
    (home / "pkm.toml").write_text(
        'runtime_dir = "run"\n[embedder]\nmodel = "hashing"\n[state_service]\nidle_seconds = 20\n'
        '[[sources]]\nname = "vault"\npath = "vault"\n'
    )
    for turn in range(3):
        for number in range(turn + 2):
            (home / "vault" / f"Note {number}.md").write_text(f"# Note {number}\n\nTurn {turn}, see [[Note 0]].\n")
        with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
            lake.update()
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        lake.tables.create(SCORES)
        lake.tables.merge(SCORES.name, pa.table({"id": ["a", "b"], "mark": pa.array([1, 2], pa.int32())}))
        lake.tables.merge(SCORES.name, pa.table({"id": ["b"], "mark": pa.array([3], pa.int32())}))
    yield home


@pytest.fixture
def call(home: Path) -> Call:
    def call(*words: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, list(words), env={"PKM_CONFIG": str(home / "pkm.toml")})
        assert done.exit_code == code, f"{words}\n{done.output}\n{done.exception!r}"
        return json.loads(done.stdout) if "--json" in words else done.output

    return call


def test_every_table_is_listed_with_its_debt(call: Call) -> None:
    found = {table["name"]: table for table in call("tables", "--json")}
    assert found[NOTES]["rows"] == 4
    assert found[NOTES]["mode"] in ("copy-on-write", "merge-on-read", "hybrid")
    assert any(name.startswith("vectors.") for name in found)
    assert {limit["name"] for limit in found[NOTES]["debt"]} >= {"small files", "delete files", "manifests"}
    shares = [limit["value"] / limit["limit"] for limit in found[NOTES]["debt"]]
    assert shares == sorted(shares, reverse=True)
    assert NOTES in call("tables")


def test_consumers_are_listed_with_their_lag(call: Call) -> None:
    found = call("tables", "consumers", NOTES, "--json")
    assert {one["name"] for one in found} >= {"silver.extracted_concepts", "gold.note_metrics"}
    assert {one["snapshots_behind"] for one in found} == {0}
    assert "gold.note_metrics" in call("tables", "consumers")


def test_a_table_tells_its_history_files_shape_and_changes(call: Call) -> None:
    versions = call("table", SCORES.name, "history", "--json")
    assert [(one["rows_added"], one["rows_updated"]) for one in versions] == [(0, 1), (2, 0)]
    assert call("table", SCORES.name, "stats", "--json")["rows"] == 2
    assert sum(one["rows"] for one in call("table", SCORES.name, "files", "--json")) == 2
    assert sum(one["rows"] for one in call("table", NOTES, "partitions", "--json")) == 4
    assert [one["name"] for one in call("table", SCORES.name, "schema", "--json")["columns"]] == ["id", "mark"]
    first = str(versions[1]["snapshot_id"])
    found = call("table", SCORES.name, "changes", "--since", first, "--json")
    assert [(one["_change_type"], one["id"], one["mark"]) for one in found] == [
        ("UPDATE_BEFORE", "b", 2),
        ("UPDATE_AFTER", "b", 3),
    ]
    assert len(call("table", SCORES.name, "changes", "-n", "1", "--json")) == 1
    for word in ("history", "files", "partitions", "schema", "changes", "explain"):
        assert call("table", SCORES.name, word)
    assert "2 rows" in call("table", SCORES.name)


def test_tags_branches_modes_and_rollback(call: Call, home: Path) -> None:
    now, before = (one["snapshot_id"] for one in call("table", SCORES.name, "history", "--json"))
    assert call("table", SCORES.name, "tag", "kept", "--json")["kept"] == now
    assert "kept" not in call("table", SCORES.name, "tag", "kept", "--drop", "--json")
    assert call("table", SCORES.name, "branch", "trial", "--json")["trial"] == now
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        lake.tables.merge(SCORES.name, pa.table({"id": ["c"], "mark": pa.array([9], pa.int32())}), branch="trial")
    branches = call("table", SCORES.name, "branch", "trial", "--publish", "--json")
    assert branches["main"] != now
    assert call("table", SCORES.name, "stats", "--json")["rows"] == 3
    call("table", SCORES.name, "branch", "trial", "--drop")
    call("table", SCORES.name, "branch", "x", "--drop", "--publish", code=2)
    assert "hybrid" in call("table", SCORES.name, "mode", "hybrid")
    assert "no write mode" in call("table", SCORES.name, "mode", "sideways", code=2)
    assert "hybrid" in call("table", SCORES.name, "mode", "--reads", "50")
    assert "neither a number" in call("table", SCORES.name, "mode", "--reads", "many", code=2)
    assert "give 0 or more" in call("table", SCORES.name, "mode", "--reads", "-1", code=2)
    call("table", SCORES.name, "rollback", str(before))
    assert call("table", SCORES.name, "stats", "--json")["snapshot_id"] == before
    assert call("tables", "explain", SCORES.name, "--json")["mode"] == "hybrid"
    assert {one["table"]: one["mode"] for one in call("tables", "explain", "--json")}[SCORES.name] == "hybrid"
    assert SCORES.name in call("tables", "explain")


def test_a_table_evolves(call: Call) -> None:
    call("table", SCORES.name, "evolve", "--add", "weight:float64", "--rename", "mark=score", "--promote", "mark:int64")
    columns = {one["name"]: one["type"] for one in call("table", SCORES.name, "schema", "--json")["columns"]}
    assert columns == {"id": "string", "score": "int64", "weight": "double"}
    call("table", SCORES.name, "evolve", "--partition", "bucket[4](id)")
    assert call("table", SCORES.name, "schema", "--json")["partitions"] == ["bucket[4](id)"]
    call("table", SCORES.name, "evolve", "--zorder", "score", "--zorder", "id")
    assert call("maintain", "compact", "--table", SCORES.name)
    call("table", SCORES.name, "evolve", "--zorder", "")
    call("table", SCORES.name, "evolve", code=2)
    for wrong in (["--add", "x"], ["--add", "x:uint9"], ["--rename", "a"], ["--partition", "f(("], ["--drop", ""]):
        call("table", SCORES.name, "evolve", *wrong, code=2)
    assert "error" in call("table", SCORES.name, "evolve", "--drop", "id", code=1)


def test_maintenance_is_planned_and_then_done(call: Call) -> None:
    planned = call("maintain", "compact", "--dry-run", "--json")
    assert all(report["dry_run"] for report in planned)
    assert call("table", NOTES, "stats", "--json")["rows"] == 4
    done = call("maintain", "all", "--json")
    assert {report["operation"] for report in done} >= {"compact", "expire", "orphans", "vectors", "state"}
    assert call("table", NOTES, "stats", "--json")["rows"] == 4
    assert "Nothing to do" in call("maintain", "compact", "--table", NOTES)
    assert "no table nope" in call("maintain", "--table", "nope", code=1)
    assert "no maintenance" in call("maintain", "polish", code=2)


@pytest.fixture
def odd(home: Path) -> Iterator[tuple[str, str]]:
    """A table with deletes that nobody here can read, and one whose files are gone."""
    equal, lost = (replace(SCORES, table=f"{name}_{uuid.uuid4().hex}") for name in ("equal", "lost"))
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        for spec in (equal, lost):
            lake.tables.create(spec)
            lake.tables.merge(spec.name, pa.table({"id": ["a"], "mark": pa.array([1], pa.int32())}))
        delete_by_equality(lake.iceberg, equal.name, "id", "a")
        lose_files(lake.iceberg, lost.name)
    yield equal.name, lost.name
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        for name in {equal.name, lost.name} & set(lake.iceberg.names()):
            lake.iceberg.catalog.drop_table(name)


def test_a_table_that_cannot_be_read_hides_no_other(
    call: Call, home: Path, odd: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    equal, lost = odd
    found = {table["name"]: table for table in call("tables", "--json")}
    assert "equality deletes" in found[equal]["error"]
    assert f"table {lost}: its metadata cannot be read" in found[lost]["error"]
    assert (found[NOTES]["rows"], found[NOTES]["error"]) == (4, "")
    assert "cannot be read" in call("tables")
    explained = {one["table"]: one for one in call("tables", "explain", "--json")}
    assert "mode" in explained[NOTES]
    assert f"table {lost}: its metadata cannot be read" in explained[lost]["error"]
    assert "cannot be read" in call("tables", "explain")
    consumers = call("tables", "consumers", "--json")
    assert [one["table"] for one in consumers if "error" in one] == [lost]
    assert NOTES in {one["table"] for one in consumers}
    assert "cannot be read" in call("tables", "consumers")

    monkeypatch.setenv("PKM_MAINTENANCE__SMALL_FILES", "2")
    owed = {report["table"]: report for report in call("maintain", "--json", code=1)}
    assert "equality deletes" in owed[equal]["error"]
    assert f"table {lost}: its metadata cannot be read" in owed[lost]["error"]
    done = call("maintain", "all", "--json", code=1)
    assert {report["table"] for report in done if report["error"]} == {equal, lost}
    assert {(report["operation"], report["table"]) for report in done if not report["error"]} >= {
        (name, NOTES) for name in ("compact", "expire", "orphans", "stats")
    }
    told = call("maintain", "compact", code=1)
    assert f"compact {equal}: " in told
    assert f"compact {lost}: " in told

    (home / "vault" / "Note 1.md").write_text("# Note 1\n\nChanged beside odd tables.\n")
    report = call("run", "--json")
    assert {line.partition(":")[0] for line in report["maintenance_failed"]} == {equal, lost}


def test_a_table_is_taken_out_of_the_catalog(call: Call, home: Path, odd: tuple[str, str]) -> None:
    equal, lost = odd
    assert f"{lost} is no table" in call("tables", "unregister", lost)
    taken = call("tables", "unregister", equal, "--json")
    assert Path(urlparse(taken["metadata_location"]).path).exists(), "no file was deleted"
    assert {equal, lost}.isdisjoint(one["name"] for one in call("tables", "--json"))
    call("tables", "register", equal, taken["metadata_location"])
    assert "table of the project" in call("tables", "unregister", NOTES, code=1)
    assert "no table gold.nothing" in call("tables", "unregister", "gold.nothing", code=1)
    assert {equal, NOTES} <= {one["name"] for one in call("tables", "--json")}


def test_a_run_does_what_is_due(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = home / "vault" / "Note 0.md"
    for name in ("SNAPSHOTS", "KEEP_SNAPSHOTS", "MANIFESTS"):
        monkeypatch.setenv(f"PKM_MAINTENANCE__{name}", "1")
    monkeypatch.setenv("PKM_MAINTENANCE__AUTO", "false")
    note.write_text("# Note 0\n\nOnce more.\n")
    assert call("run", "--json")["maintained"] == []
    monkeypatch.setenv("PKM_MAINTENANCE__AUTO", "true")
    note.write_text("# Note 0\n\nAnd again, see [[Note 1]].\n")
    report = call("run", "--json")
    assert any(line.startswith("manifests bronze.raw_notes: rewrite") for line in report["maintained"])
    assert report["maintenance_failed"] == []
    again = call("run", "--json")
    assert again["run_id"] == "", again


def test_tables_of_an_older_version_are_migrated(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "present format" in call("warehouse", "migrate")

    def rewritten(step: Step) -> None:
        step.rewrite(lambda batch: batch)

    step = Migration(SCORES.name, 1, "all is written anew", rewritten)
    registry = Registry((replace(SCORES, format_version=2),), (step,))
    monkeypatch.setattr(migrations, "plan_migrations", lambda stores, _=None: plan_migrations(stores, registry))
    monkeypatch.setattr(migrations, "migrate", partial(migrate, registry=registry))
    for words in (("--dry-run",), ()):
        assert "all is written anew" in call("warehouse", "migrate", *words)
    assert call("warehouse", "migrate", "--json") == []


def test_a_table_is_registered_and_the_warehouse_moved_and_found_again(call: Call, home: Path) -> None:
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        metadata = lake.iceberg.load(NOTES).metadata_location
        lake.iceberg.catalog.drop_table(NOTES)
    assert "no table" in call("table", NOTES, code=1)
    assert f"{NOTES} is registered" in call("tables", "register", NOTES, metadata)
    assert "is the table" in call("tables", "register", "gold.copy", metadata, code=1)
    other = f"sqlite:///{home}/other.db"
    assert "new" in call("tables", "register", NOTES, "--in", other)
    assert "up to date" in call("tables", "register", NOTES, "--in", other)
    assert "either METADATA" in call("tables", "register", NOTES, code=2)
    target = (home / "moved").as_uri()
    planned = call("warehouse", "move", target, "--dry-run", "--json")
    assert planned["dry_run"]
    assert call("warehouse", "move", target, "--write-settings", "--json")["settings_file"]
    assert target in (home / "pkm.toml").read_text()
    assert call("table", NOTES, "stats", "--json")["rows"] == 4
    (home / ".pkm" / "catalog.db").rename(home / "lost.db")
    for leftover in (home / ".pkm").glob("catalog.db-*"):
        leftover.unlink()
    found = call("warehouse", "rebuild-catalog", "--json")
    assert NOTES in {one["name"] for one in found["registered"]}
    assert call("table", NOTES, "stats", "--json")["rows"] == 4
