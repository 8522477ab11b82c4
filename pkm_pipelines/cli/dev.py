"""`pkm dev`: the Dagster UI and its daemon over this lakehouse."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from pkm_pipelines.cli.common import load_settings

if TYPE_CHECKING:
    from pkm_pipelines.settings import Settings

HOST = "127.0.0.1"
_STOP_SECONDS = 30


def dev(
    port: Annotated[
        int, typer.Option("--port", "-p", metavar="PORT", min=1, max=65535, help="Port of the UI on 127.0.0.1.")
    ] = 3000,
) -> None:
    """Start the Dagster UI with its daemon.

    It shows lineage, runs and checks, and drives schedules, sensors and backfills. Everything lies in `.pkm/` and
    the UI listens on this machine only, as it asks for no password. Ctrl-C stops it.
    """
    from pkm_pipelines.cli.instance import ROOT, WORKSPACE, prepare_instance, prune_logs
    from pkm_pipelines.cli.output import say

    settings = load_settings()
    _check_port(port)
    folder = prepare_instance(settings)
    prune_logs(folder)
    _bury_dead_runs(settings)
    say(f"Dagster UI: http://{HOST}:{port} (Ctrl-C stops it)")
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(WORKSPACE), "-h", HOST, "-p", str(port)]
    raise typer.Exit(_supervise(command, str(ROOT)))


def _check_port(port: int) -> None:
    from pkm_pipelines.model.errors import PkmError

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PkmError(f"port {port} cannot be used ({error.strerror}); choose another: pkm dev --port") from None


def _bury_dead_runs(settings: Settings) -> None:
    """Runs whose process was killed are ended before anything queues behind them."""
    import dagster as dg

    from pkm_pipelines.cli.runner import free_dead_runs
    from pkm_pipelines.lakehouse import Lakehouse

    with Lakehouse.open(settings) as lake, dg.DagsterInstance.get() as instance:
        free_dead_runs(lake, instance)


def _supervise(command: list[str], folder: str) -> int:
    """Run `command` until it ends, passing on the word to stop; returns the exit code of this command.

    A Ctrl-C reaches the child by itself, as a member of the terminal's foreground group; a SIGTERM is handed on.
    """
    asked = False
    process = subprocess.Popen(command, cwd=folder)  # noqa: S603  # our own command line, no shell

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGTERM:
            process.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            try:
                code = process.wait(_STOP_SECONDS if asked else 1)
                break
            except subprocess.TimeoutExpired:
                if asked:
                    process.kill()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if asked else abs(code)
