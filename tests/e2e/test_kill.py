"""`kill -9` at any point of a run, then a run: the same final state as without the kill, nothing twice, nothing lost.

The seed is printed; `PKM_TEST_KILL_SEED` repeats a run, `PKM_TEST_KILLS` sets how many kills there are.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.support.lake import assert_same, open_lake

ROOT = Path(__file__).resolve().parents[2]
KILLS = {1: 6, 3: 25, 20: 200}


def start(home: Path, vault: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.support.update_once", str(home), str(vault)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output.decode()


def kill_state_service(home: Path) -> None:
    """The state's writer may be killed as well as its clients."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any("slate_service" in word for word in words) and any(str(home) in word for word in words):
            process.send_signal(signal.SIGKILL)


def edit(vault: Path, rng: random.Random, step: int) -> None:
    """A handful of random edits: new, changed, renamed and deleted notes."""
    paths = sorted(vault.rglob("*.md"))
    for path in rng.sample(paths, min(4, len(paths))):
        choice = rng.random()
        if choice < 0.5:
            path.write_text(f"{path.read_text()}\nStep {step}, see [[Note {rng.randrange(40)}]].\n")
        elif choice < 0.75:
            path.rename(path.with_name(f"Renamed {step} {rng.randrange(1000)}.md"))
        else:
            path.unlink()
    for number in range(3):
        name = f"New {step} {number}"
        (vault / f"{name}.md").write_text(f"# {name}\n\nOf [[Note {rng.randrange(40)}]] and #step/{step}.\n")


@pytest.mark.e2e
@pytest.mark.timeout(1500)
def test_killed_runs_end_as_whole_ones_would(work: Path, budget: int) -> None:
    seed = int(os.environ.get("PKM_TEST_KILL_SEED") or random.SystemRandom().randrange(10**6))
    kills = int(os.environ.get("PKM_TEST_KILLS") or KILLS[budget])
    print(f"PKM_TEST_KILL_SEED={seed} PKM_TEST_KILLS={kills}")
    rng = random.Random(seed)
    vault, home = work / "vault", work / "lake"
    vault.mkdir()
    for number in range(40):
        links = " ".join(f"[[Note {rng.randrange(45)}]]" for _ in range(3))
        (vault / f"Note {number}.md").write_text(f"# Note {number}\n\nAbout {links}.\n\n" + "Prose. " * 40)
    began = time.monotonic()
    finish(start(home / "timing", vault))
    duration = time.monotonic() - began
    for step in range(kills):
        process = start(home, vault)
        time.sleep(rng.uniform(0, duration))
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]  # a pipe was asked for
        if rng.random() < 0.3:
            kill_state_service(home)
        edit(vault, rng, step)
    finish(start(home, vault))

    with open_lake(home, vault) as lake, open_lake(work / "fresh", vault) as fresh:
        assert lake.is_current()
        fresh.update()
        rows = lake.tables.read("bronze.raw_notes", columns=["change_id", "note_id", "version"]).read_all().to_pylist()
        assert max(Counter(row["change_id"] for row in rows).values()) == 1
        assert max(Counter((row["note_id"], row["version"]) for row in rows).values()) == 1
        assert_same(lake, fresh)
