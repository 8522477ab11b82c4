"""The state as tests use it: real services in a folder of their own, ended with the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from pkm_pipelines.settings import StateSettings
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_client import State
from tests.support.s3 import S3Endpoint

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


@dataclass(frozen=True)
class SharedState:
    """A running state that the tests of a module use one after the other."""

    state: State
    location: Location
    runtime_dir: Path

    def open(self) -> State:
        """Another client of it."""
        return State.connect(self.location, StateSettings(idle_seconds=30), self.runtime_dir)


@pytest.fixture(scope="module", params=["local", "s3"])
def running_state(request: pytest.FixtureRequest, ram_folder: Path) -> Iterator[SharedState]:
    """One service on local disk and one on S3 for the tests of a module."""
    folder = Path(tempfile.mkdtemp(dir=ram_folder))
    if request.param == "local":
        location = Location((folder / "state").as_uri())
    else:
        endpoint: S3Endpoint = request.getfixturevalue("s3_endpoint")
        location = endpoint.location()
    with State.connect(location, StateSettings(idle_seconds=30), folder / "run") as state:
        yield SharedState(state, location, folder / "run")
    end_services(folder / "run")


@pytest.fixture
def shared_state(running_state: SharedState) -> SharedState:
    """The module's state, emptied."""
    running_state.state.clear("")
    return running_state


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

    def kill(self) -> list[Any]:
        """kill -9, and reap; what it had said that was not read yet."""
        self._process.kill()
        said, _ = self._process.communicate()
        return [json.loads(line) for line in said.splitlines(keepends=True) if line.endswith("\n")]


class Service:
    """A state service started by hand, as on a host that serves others."""

    def __init__(self, location: Location, runtime_dir: Path, *options: str) -> None:
        readable, writable = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pkm_pipelines.storage.slate_service", f"--url={location.url}"),
                *(f"--runtime-dir={runtime_dir}", f"--ready-fd={writable}", *options),
            ],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            pass_fds=[writable],
        )
        os.close(writable)
        self._ready = os.fdopen(readable)

    @cached_property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return self.answer()["port"]

    def answer(self) -> dict[str, Any]:
        """What it says when it is ready, or why it is not; empty if it ended without a word."""
        with self._ready:
            line = self._ready.readline()
        return json.loads(line) if line else {}

    def end(self) -> int:
        """kill -9 if it runs; its exit code."""
        self.process.kill()
        return self.process.wait()
