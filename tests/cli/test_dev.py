"""`pkm dev` around its child: the port is looked at first, and the word to stop arrives once and in time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pkm_pipelines.cli import dev
from pkm_pipelines.cli.instance import LOG_DAYS, prune_logs
from pkm_pipelines.model.errors import PkmError

CHILD = """
import signal, sys, time, subprocess, pathlib
heard = []
def stop(number, frame):
    heard.append(number)
    pathlib.Path(sys.argv[1]).write_text(str(len(heard)))
    if sys.argv[2] == "obey":
        raise SystemExit(0)
signal.signal(signal.SIGINT, stop)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1] + ".pid").write_text(str(grandchild.pid))
while True:
    time.sleep(0.05)
"""


def wait_for(path: Path) -> str:
    for _ in range(200):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def signal_when_ready(mark: Path, numbers: list[int]) -> None:
    def send() -> None:
        wait_for(Path(f"{mark}.pid"))
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_word_to_stop_is_passed_on_once(work: Path, number: int) -> None:
    mark = work / "heard"
    signal_when_ready(mark, [number])
    assert dev._supervise([sys.executable, "-c", CHILD, str(mark), "obey"], str(work)) == 0
    assert mark.read_text() == "1"
    psutil.Process(int(wait_for(Path(f"{mark}.pid")))).kill()


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_a_child_that_does_not_stop_is_killed_with_its_children(
    work: Path, numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "_STOP_SECONDS", 1.0 if len(numbers) == 1 else 60.0)
    mark = work / "heard"
    signal_when_ready(mark, numbers)
    started = time.monotonic()
    assert dev._supervise([sys.executable, "-c", CHILD, str(mark), "stay"], str(work)) == 0
    assert time.monotonic() - started < 30
    pid = int(wait_for(Path(f"{mark}.pid")))
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the grandchild lives on")


def test_the_word_to_stop_arrives_when_started_in_the_background(work: Path) -> None:
    """A shell starts a background job with Ctrl-C ignored, and what ignores a signal hands that down."""
    mark = work / "heard"
    child = "import pathlib, sys, time; pathlib.Path(sys.argv[1] + '.pid').write_text('1'); time.sleep(60)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signal_when_ready(mark, [signal.SIGTERM])
        started = time.monotonic()
        assert dev._supervise([sys.executable, "-c", child, str(mark)], str(work)) == 0
        assert time.monotonic() - started < dev._STOP_SECONDS - 5
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_child_that_fails_fails_the_command(work: Path) -> None:
    assert dev._supervise([sys.executable, "-c", "raise SystemExit(3)"], str(work)) == 3


def test_a_taken_port_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PkmError, match=f"127.0.0.1:{port} cannot be used"):
            dev._check_port("127.0.0.1", port)
    dev._check_port("127.0.0.1", port)


def test_old_logs_go_and_new_ones_stay(work: Path) -> None:
    for name, days in (("old", LOG_DAYS + 1), ("new", LOG_DAYS - 1)):
        logs = work / "storage" / name / "compute_logs"
        logs.mkdir(parents=True)
        (logs / "x.out").write_text("said")
        os.utime(logs, (time.time() - days * 86400,) * 2)
    assert prune_logs(work) == 1
    assert not (work / "storage" / "old" / "compute_logs").exists()
    assert (work / "storage" / "new" / "compute_logs" / "x.out").read_text() == "said"
    assert prune_logs(work / "nowhere") == 0


def test_the_command_line_that_is_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster knows every option that it is called with."""
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "dev", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("-w, --workspace", "-h, --host", "-p, --port"):
        assert option in done.stdout
