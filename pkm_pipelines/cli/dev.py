"""`pkm dev`: the Dagster UI and its daemon over this lakehouse."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from pkm_pipelines.cli.common import load_settings

if TYPE_CHECKING:
    from pkm_pipelines.settings import Settings

_STOP_SECONDS = 30.0
# Begins the warning that Dagster prints to whoever types `dagster dev`; nobody has typed it here.
_ADVICE = "Function `dev_command` is superseded"


def dev(
    port: Annotated[int, typer.Option("--port", "-p", metavar="PORT", min=1, max=65535, help="Port of the UI.")] = 3000,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on; the UI asks nobody for a password.")
    ] = "127.0.0.1",
) -> None:
    """Start the Dagster UI with its daemon.

    It shows lineage, runs and checks, and drives schedules, sensors and backfills. Everything lies in `.pkm/` and
    the UI listens on this machine only, as it asks for no password. Ctrl-C stops it.
    """
    from pkm_pipelines.cli.instance import ROOT, WORKSPACE, prepare_instance, prune_logs
    from pkm_pipelines.cli.output import say

    settings = load_settings()
    _check_port(host, port)
    folder = prepare_instance(settings)
    prune_logs(folder)
    _bury_dead_runs(settings)
    say(f"Dagster UI: http://{host}:{port} (Ctrl-C stops it)")
    command = [sys.executable, "-W", f"ignore:{_ADVICE}", "-m", "dagster", "dev"]
    command += ["-w", str(WORKSPACE), "-h", host, "-p", str(port)]
    raise typer.Exit(_supervise(command, str(ROOT)))


def _check_port(host: str, port: int) -> None:
    from pkm_pipelines.model.errors import PkmError

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PkmError(f"{host}:{port} cannot be used ({error.strerror}); another port: pkm dev --port N") from None


def _bury_dead_runs(settings: Settings) -> None:
    """Runs whose process was killed are ended before anything queues behind them."""
    import dagster as dg

    from pkm_pipelines.lakehouse import Lakehouse
    from resources.dead_runs import free_dead_runs

    with Lakehouse.open(settings) as lake, dg.DagsterInstance.get() as instance:
        free_dead_runs(lake.state, instance)


def _supervise(command: list[str], folder: str) -> int:
    """Run `command` until it ends, passing on the word to stop; returns the exit code of this command.

    The child leads a session of its own, so a Ctrl-C reaches it once and through us alone, and its own children
    through it, in the order that it wants. What is left after `_STOP_SECONDS`, or at a second Ctrl-C, is killed.
    """
    asked = 0
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if process is not None:
            process.send_signal(signal.SIGINT if asked == 1 else signal.SIGKILL)

    # Before the child is there: what a shell starts in the background ignores Ctrl-C, and so would its children.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(command, cwd=folder, start_new_session=True)  # noqa: S603  # our own words, no shell
        if asked:
            process.send_signal(signal.SIGINT)
        left = _STOP_SECONDS
        while process.poll() is None:
            time.sleep(0.1)
            left -= 0.1 if asked else 0
            if left < 0:
                process.kill()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if process.returncode < 0:
        # Killed: its children may still be there.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return 0 if asked else abs(process.returncode)
