"""Four runs, sensors and readers at once: no lost update, no fenced writer, nothing for the user to see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
