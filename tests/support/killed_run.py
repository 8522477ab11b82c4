"""A `pkm run` that gets a signal at a named point: `python -m tests.support.killed_run SIGNAL POINT`.

A point is `recorded`, `started`, `between` two steps, or the name of a stage: then it comes when the stage has begun to
count.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def told(owner: type, method: str, number: int, when: Callable[..., bool]) -> None:
    """Send this process the signal after the first call of `method` that fits."""
    whole, sent = getattr(owner, method), False

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal sent
        result = whole(*arguments, **options)
        if not sent and when(*arguments, **options):
            sent = True
            os.kill(os.getpid(), number)
        return result

    setattr(owner, method, call)


def main() -> None:
    """Run, and get the signal."""
    from dagster import DagsterInstance
    from dagster._core.storage.runs import SqliteRunStorage

    from pkm_pipelines.cli.main import app
    from pkm_pipelines.operations.jobs import JobProgress

    _, name, point = sys.argv
    number = signal.Signals[name]
    match point:
        case "recorded":  # Dagster has recorded the run, as NOT_STARTED
            told(SqliteRunStorage, "add_run", number, lambda *_: True)
        case "started":  # Dagster has recorded that it runs
            told(
                SqliteRunStorage,
                "handle_run_event",
                number,
                lambda *call, **_: call[2].event_type_value == "PIPELINE_START",
            )
        case "between":
            told(
                DagsterInstance,
                "handle_new_event",
                number,
                lambda _, event, **__: event.is_dagster_event and event.get_dagster_event().is_step_success,
            )
        case stage:
            told(JobProgress, "advance", number, lambda self, *_, **__: self._job.stage == stage)
    sys.argv[1:] = ["run"]
    app()


if __name__ == "__main__":
    main()
