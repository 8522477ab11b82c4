"""Four runs, sensors and readers at once: no lost update, no fenced writer, nothing for the user to see."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from pkm_pipelines import settings
from pkm_pipelines.lakehouse import Lakehouse
from tests.support.dev import pkm, running_dev
from tests.support.lake import assert_same, open_lake

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_four_updates_and_readers_at_once(work: Path, budget: int) -> None:
    vault, home = work / "vault", work / "lake"
    vault.mkdir()
    for number in range(60):
        (vault / f"Note {number}.md").write_text(
            f"# Note {number}\n\nSee [[Note {(number * 7) % 60}]]. #tag/{number % 5}\n"
        )
    command = [sys.executable, "-m", "tests.support.update_once", str(home), str(vault)]
    for turn in range(2 * budget):
        processes = [
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(4)
        ]
        with open_lake(home, vault) as lake:
            while any(process.poll() is None for process in processes):
                lake.status()
                lake.is_current()
        for process in processes:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output.decode()
            assert b"locked" not in output, output.decode()
            assert b"fenced" not in output.lower(), output.decode()
        for number in range(turn, 60, 9):
            path = vault / f"Note {number}.md"
            path.write_text(path.read_text() + f"\nTurn {turn}.\n")
    with open_lake(home, vault) as lake, open_lake(work / "fresh", vault) as fresh:
        lake.update()
        fresh.update()
        assert_same(lake, fresh)


def write_notes(vault: Path, turn: int) -> None:
    for number in range(turn, 40, 3):
        path = vault / f"Note {number}.md"
        path.write_text(f"# Note {number}\n\nSee [[Note {(number * 7) % 40}]] in turn {turn}. #tag/{number % 5}\n")


def runs_of_sensors(home: Path) -> list[dg.DagsterRun]:
    with dg.DagsterInstance.from_config(str(home / ".pkm" / "dagster")) as instance:
        return [run for run in instance.get_runs() if "dagster/sensor_name" in run.tags]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_four_runs_the_sensors_and_the_commands_at_once(work: Path, budget: int) -> None:
    vault, home = work / "vault", work / "lake"
    vault.mkdir()
    home.mkdir()
    (home / "pkm.toml").write_text(
        'runtime_dir = "run"\n[embedder]\nmodel = "hashing"\n[state_service]\nidle_seconds = 15\n'
        f'[[sources]]\nname = "vault"\npath = "{vault}"\n'
    )
    write_notes(vault, 0)
    command, environment = pkm(home)

    def start(*words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=home
        )

    assert start("run").wait(timeout=240) == 0
    log = work / "dev.log"
    told = b""
    with running_dev(home, log):
        deadline = time.monotonic() + 480
        turn = 0
        # Until the sensors have made runs of their own beside ours, and all of them have ended.
        while turn < budget or not (runs := runs_of_sensors(home)) or not all(run.is_finished for run in runs):
            assert time.monotonic() < deadline, log.read_text()
            write_notes(vault, turn % 3)
            processes = [*(start("run") for _ in range(4)), start("status", "--json"), start("search", "turn")]
            for process in processes:
                output, _ = process.communicate(timeout=240)
                told += output
                assert process.returncode == 0, output.decode()
            turn += 1
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
        output, _ = start("status", "--json").communicate(timeout=60)
        assert all(job["status"] != "failed" for job in json.loads(output)["jobs"]), output.decode()
        # Before Ctrl-C: Dagster prints a traceback of a sensor's tick that it cuts off.
        logged = log.read_bytes()
    for words in (b"locked", b"fenced", b"Traceback"):
        assert words not in told, told.decode()
        assert words not in logged, logged.decode()
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake, open_lake(work / "fresh", vault) as fresh:
        lake.update()
        fresh.update()
        assert_same(lake, fresh)
