"""A running `pkm dev`, and the command as a user types it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest


@dataclass(frozen=True)
class Ui:
    """A running `pkm dev`."""

    address: str
    home: Path


def pkm(home: Path) -> tuple[list[str], dict[str, str]]:
    """The command, and the environment in which it finds the lakehouse and no one else's Dagster."""
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    return [sys.executable, "-m", "pkm_pipelines.cli.main"], {**environment, "PKM_CONFIG": str(home / "pkm.toml")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_dev(home: Path, log: Path) -> Iterator[Ui]:
    """Start `pkm dev` over the lakehouse at `home`, and stop it as Ctrl-C does; fails if anything of it stays."""
    command, environment = pkm(home)
    port = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "dev", "--port", str(port)], env=environment, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_served(process, address, log)
        yield Ui(address, home)
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        process.wait(timeout=90)
        # The state service stays for its idle time; everything else has ended by now.
        _, left = psutil.wait_procs(started, timeout=60)
        for child in left:
            child.kill()
    assert not left, f"still there after Ctrl-C: {left}"


def _wait_until_served(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/server_info", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"no UI after three minutes:\n{log.read_text()}")
