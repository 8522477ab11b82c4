"""`kill -9` of a whole `pkm dev` while a run is at work: the next one ends that run, and the notes come in."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest

from pkm_pipelines import settings
from pkm_pipelines.lakehouse import Lakehouse
from tests.support.dev import free_port, pkm, running_dev

_SUCCESS = dg.DagsterRunStatus.SUCCESS


def runs(home: Path) -> list[dg.DagsterRun]:
    with dg.DagsterInstance.from_config(str(home / ".pkm" / "dagster")) as instance:
        return list(instance.get_runs())


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_killed_dev_holds_up_nothing_after_the_next_start(work: Path) -> None:
    vault, home = work / "vault", work / "lake"
    vault.mkdir()
    home.mkdir()
    (home / "pkm.toml").write_text(
        'runtime_dir = "run"\n[embedder]\nmodel = "hashing"\n[state_service]\nidle_seconds = 15\n'
        f'[[sources]]\nname = "vault"\npath = "{vault}"\n'
    )
    for number in range(3000):
        (vault / f"Note {number}.md").write_text(f"# Note {number}\n\nSee [[Note {number // 2}]].\n" + "Prose. " * 300)
    command, environment = pkm(home)
    log = work / "dev.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "dev", "--port", str(free_port())], env=environment, stdout=file, stderr=file
        )
    deadline = time.monotonic() + 180
    while not (home / ".pkm" / "dagster" / "history" / "runs.db").exists() or not any(
        run.status is dg.DagsterRunStatus.STARTED for run in runs(home)
    ):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in tree:
        one.kill()
    process.wait()
    [killed] = runs(home)
    assert not killed.is_finished
    (vault / "Last.md").write_text("# Last\n")
    with running_dev(home, log):
        deadline, found = time.monotonic() + 240, runs(home)
        while _SUCCESS not in {run.status for run in found} or not all(run.is_finished for run in found):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(1)
            found = runs(home)
        assert {run.run_id: run.status for run in found}[killed.run_id] is dg.DagsterRunStatus.FAILURE
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        assert lake.table("silver.processed_notes").row_count == 3001
