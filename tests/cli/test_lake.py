"""A session at the keyboard, in order: init, run, search, sql, note, status, edit, run again, doctor, demo."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
VAULT = ROOT / "examples" / "vault"
PKM = str(Path(sys.executable).with_name("pkm"))
pytestmark = pytest.mark.e2e


class Desk:
    """A folder with settings and a copy of the example vault, and the command to be called in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vault = folder / "Crumb notes"
        shutil.copytree(VAULT, self.vault)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PKM_", "DAGSTER_"))},
            "PKM_EMBEDDER__MODEL": "hashing",
            "PKM_RUNTIME_DIR": str(folder / "run"),
            "PKM_STATE_SERVICE__IDLE_SECONDS": "5",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PKM, *words],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def call(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [PKM, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == code, f"pkm {' '.join(words)}\n{done.stderr}\n{done.stdout}"
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.call(*words, "--json").stdout)


@pytest.fixture(scope="module")
def desk(ram_folder: Path) -> Iterator[Desk]:
    folder = ram_folder / "a desk"
    folder.mkdir()
    desk = Desk(folder)
    desk.call("init", "Crumb notes")
    desk.first = desk.json("run")  # type: ignore[attr-defined]
    yield desk


def test_run_tells_what_it_built(desk: Desk) -> None:
    report = desk.first  # type: ignore[attr-defined]
    tables = {table["table"]: table for table in report["tables"]}
    notes = len(list(desk.vault.rglob("*.md")))
    assert tables["bronze.raw_notes"]["rows_added"] == notes
    assert tables["silver.processed_notes"]["row_count"] == notes
    assert report["failed_checks"] == []
    assert all(int(table["snapshot_id"]) > 0 for table in tables.values())


def test_run_without_a_change_says_so_and_makes_no_run(desk: Desk) -> None:
    report = desk.json("run")
    assert report["run_id"] == "" and report["tables"] == []
    assert "Nothing has changed" in desk.call("run").stderr


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
def test_search(desk: Desk, mode: str) -> None:
    hits = desk.json("search", "sourdough starter", "--mode", mode, "-k", "3")
    assert 1 <= len(hits) <= 3
    assert {"note_id", "title", "path", "heading", "snippet", "score"} <= set(hits[0])
    assert (desk.vault / hits[0]["path"]).is_file()
    shown = desk.call("search", "sourdough starter", "--mode", mode).stdout
    assert hits[0]["title"] in shown and hits[0]["path"] in shown


def test_search_narrowed_by_folder_and_tag(desk: Desk) -> None:
    hits = desk.json("search", "bread", "--path", "Loaves", "--mode", "text")
    assert hits and all(hit["path"].startswith("Loaves/") for hit in hits)
    tagged = {
        row["path"] for row in desk.json("sql", "SELECT path FROM processed_notes WHERE list_contains(tags, 'starter')")
    }
    hits = desk.json("search", "bread", "--tag", "starter")
    assert hits and {hit["path"] for hit in hits} <= tagged


def test_sql_sees_every_table(desk: Desk) -> None:
    names = {f"{row['schema']}.{row['name']}" for row in desk.json("sql", "SHOW TABLES")}
    assert {"bronze.raw_notes", "silver.knowledge_graph", "gold.note_metrics", "vectors.note_embeddings"} <= names
    rows = desk.json(
        "sql",
        """
        SELECT n.path, count(DISTINCT v.chunk_id) AS chunks FROM silver.processed_notes n
        JOIN vectors.note_embeddings v USING (note_id) GROUP BY ALL ORDER BY ALL LIMIT 3
        """,
    )
    assert len(rows) == 3 and all(row["chunks"] > 0 for row in rows)


def test_note(desk: Desk) -> None:
    view = desk.json("note", "Agnes")
    assert view["path"] == "Starter/Agnes.md"
    assert view["obsidian_url"] == "obsidian://open?vault=Crumb%20notes&file=Starter%2FAgnes.md"
    assert view["backlinks"] and view["links"] and len(view["history"]) == 1
    shown = desk.call("note", "Agnes").stdout
    assert view["obsidian_url"] in shown and view["backlinks"][0]["path"] in shown
    assert "no note is called" in desk.call("note", "No such loaf", code=1).stderr


def test_status(desk: Desk) -> None:
    status = desk.json("status")
    tables = {table["name"]: table for table in status["tables"]}
    assert all(mark["behind"] == 0 for table in tables.values() for mark in table["inputs"])
    (source,) = status["sources"]
    assert source["notes"] == len(list(desk.vault.rglob("*.md")))
    assert (source["pending"], source["error"]) == (False, None)
    assert status["jobs"][0]["status"] == "succeeded"
    shown = desk.call("status").stdout
    assert "silver.processed_notes" in shown and "read to the end" in shown
    (run,) = (line for line in shown.splitlines() if line.startswith(status["jobs"][0]["run_id"][:8]))
    assert re.fullmatch(r"\w{8} +succeeded +[\d-]{10} [\d:]{8} +\d+\.\d s", run.strip()), run


def test_problems_are_listed(desk: Desk) -> None:
    (desk.vault / "broken.md").write_bytes(b"caf\xe9 \x00")
    desk.call("run")
    problems = desk.json("status", "--problems")
    assert "broken.md" in {problem["path"] for problem in problems}
    assert "broken.md" in desk.call("status", "--problems").stdout
    (desk.vault / "broken.md").unlink()
    desk.call("run")
    assert "broken.md" not in desk.call("status", "--problems").stdout


def test_doctor_is_content(desk: Desk) -> None:
    checks = desk.json("doctor")
    assert {check["outcome"] for check in checks} <= {"ok", "warn"}, checks
    assert {"python", "warehouse store", "catalog", "state service", "model", "disk"} <= {
        check["name"] for check in checks
    }
    # It leaves nothing behind.
    assert not list(desk.folder.rglob(".doctor-*")) and not list(desk.folder.rglob(".probe-*"))


def test_doctor_says_what_is_wrong_and_fails(desk: Desk) -> None:
    moved = desk.vault.rename(desk.folder / "elsewhere")
    try:
        done = desk.call("doctor", code=1)
        assert "fail  source crumb-notes" in done.stdout and "correct its" in done.stdout
    finally:
        moved.rename(desk.vault)


def test_watch_follows_an_edit_and_stops_on_ctrl_c(desk: Desk) -> None:
    process = desk.start("run", "--watch")
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("Watching"):
            break
    (desk.vault / "Brand new.md").write_text("# Brand new\n\nA zeppelin of a loaf.\n")
    for line in process.stderr:
        seen.append(line)
        if line.startswith("Run "):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, "".join(seen) + err
    assert err.splitlines()[-1] == "Stopped."
    assert desk.json("search", "zeppelin", "--mode", "text")[0]["path"] == "Brand new.md"


def test_demo_builds_asks_and_answers(desk: Desk) -> None:
    done = desk.call("demo", "--source", str(VAULT))
    questions = json.loads((VAULT / ".pkm-demo.json").read_text())
    assert all(f"? {question}" in done.stdout for question in questions)
    assert "silver.processed_notes" in done.stdout and "3 searches answered" in done.stderr
    again = desk.call("demo", "--source", str(VAULT))
    assert "Nothing has changed" in again.stderr and "silver.processed_notes" in again.stdout
    assert not (VAULT / ".pkm").exists()


@pytest.mark.slow
def test_demo_of_another_vault_finds_its_own_questions(desk: Desk) -> None:
    done = desk.call("demo", "--source", str(desk.vault / "Loaves"))
    assert done.stdout.count("\n? ") == 3


@pytest.mark.slow
def test_an_interrupted_run_is_130_and_the_next_one_goes_on(desk: Desk, budget: int) -> None:
    big = desk.folder / "Crumb notes" / "big"
    big.mkdir()
    for number in range(400):
        (big / f"n{number}.md").write_text(f"# Note {number}\n\n" + f"Word {number} of many. " * 40)
    process = desk.start("run")
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run was quicker than the interrupt")
    assert process.returncode == 130, err
    assert "interrupted" in err.splitlines()[-1] and "Traceback" not in err
    desk.call("run")
    assert desk.json("sql", "SELECT count(*) AS n FROM processed_notes WHERE path LIKE 'big/%'") == [{"n": 400}]
