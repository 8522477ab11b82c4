"""A `pkm run` that is killed with `kill -9` at a named point: `python -m tests.support.killed_run POINT`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

POINTS = ("recorded", "started", "working")


def dies(owner: type, method: str, when: Callable[..., bool]) -> None:
    """Kill this process after the first call of `method` that fits."""
    whole = getattr(owner, method)

    def call(*arguments: Any, **options: Any) -> Any:
        result = whole(*arguments, **options)
        if when(*arguments, **options):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, call)


def main() -> None:
    """Run, and die."""
    from dagster._core.storage.runs import SqliteRunStorage

    from pkm_pipelines.cli.main import app
    from pkm_pipelines.operations.jobs import JobProgress

    match sys.argv.pop():
        case "recorded":  # Dagster has recorded the run, as NOT_STARTED
            dies(SqliteRunStorage, "add_run", lambda *_: True)
        case "started":  # Dagster has recorded that it runs
            dies(SqliteRunStorage, "handle_run_event", lambda *call, **_: call[2].event_type_value == "PIPELINE_START")
        case _:
            dies(JobProgress, "stage", lambda *_, **__: True)
    sys.argv.append("run")
    app()


if __name__ == "__main__":
    main()
