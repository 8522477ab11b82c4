"""Ctrl-C in the middle of `pkm run`: it stops soon, says so, and the next run ends as if there had been none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pkm_pipelines import settings
from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.operations.jobs import list_jobs
from tests.support.dev import pkm
from tests.support.lake import assert_same, open_lake

ROOT = Path(__file__).resolve().parents[2]
POINTS = ("recorded", "started", "vault: notes", "parse", "between", "graph", "embed")


@pytest.mark.e2e
@pytest.mark.parametrize("points", [("started",), pytest.param(POINTS, marks=pytest.mark.slow)], ids=["one", "all"])
def test_an_interrupted_run_ends_as_cancelled_and_loses_nothing(work: Path, points: tuple[str, ...]) -> None:
    vault, home = work / "vault", work / "lake"
    vault.mkdir()
    home.mkdir()
    (home / "pkm.toml").write_text(
        'runtime_dir = "run"\nbatch_notes = 2\n[embedder]\nmodel = "hashing"\n[state_service]\nidle_seconds = 15\n'
        f'[[sources]]\nname = "vault"\npath = "{vault}"\n'
    )
    command, environment = pkm(home)
    for turn, point in enumerate(points):
        for number in range(4):
            (vault / f"Note {(turn + number) % 6}.md").write_text(
                f"# {turn} {number}\n\nSee [[Note {number}]]. #a/{turn}\n"
            )
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.killed_run", "SIGINT", point],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 130, f"{point}: {done.stderr}"
        assert "interrupted" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        assert [job.status for job in list_jobs(lake.state)] == ["cancelled"] * len(points)
        with dg.DagsterInstance.from_config(str(home / ".pkm" / "dagster")) as instance:
            assert all(run.is_finished for run in instance.get_runs())
        done = subprocess.run(
            [*command, "run"], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        with open_lake(work / "fresh", vault) as fresh:
            fresh.update()
            assert_same(lake, fresh)
