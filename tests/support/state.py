"""The state as tests use it: real services in a folder of their own, ended with the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pkm_pipelines.settings import StateSettings
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_client import State

ROOT = Path(__file__).resolve().parents[2]
OpenState = Callable[..., State]


@pytest.fixture
def open_state(work: Path) -> Iterator[OpenState]:
    """Opens states whose services live in this test's own runtime folder, and are ended with it."""
    opened: list[State] = []

    def open_(location: Location, *, idle_seconds: float = 30, service: str | None = None) -> State:
        settings = StateSettings(idle_seconds=idle_seconds, service=service)
        opened.append(State.connect(location, settings, work / "run"))
        return opened[-1]

    yield open_
    for state in opened:
        state.close()
    end_services(work / "run")


def end_services(runtime_dir: Path) -> None:
    """Kill every service of a runtime folder; being killed is what they are made for."""
    for process in services(runtime_dir):
        os.kill(process, signal.SIGKILL)


def services(runtime_dir: Path) -> list[int]:
    """The process ids of the running services of a runtime folder."""
    found: list[int] = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "pkm_pipelines.storage.slate_service" in words and f"--runtime-dir={runtime_dir}" in words:
            found.append(int(command.parent.name))
    return found


class Worker:
    """Another process that uses the state: `python -m tests.support.state_worker`."""

    def __init__(self, location: Location, runtime_dir: Path, job: str, *words: object) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.support.state_worker"),
                *(location.url, str(runtime_dir), job, *map(str, words)),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def next(self) -> Any:
        """The next thing it says; waits for it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the worker ended with exit code {self._process.wait()}"
        return json.loads(line)

    def go(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """kill -9, and reap."""
        self._process.kill()
        self._process.communicate()
