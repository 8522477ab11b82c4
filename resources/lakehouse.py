"""The lakehouse as a Dagster resource: opened once a process, and telling the run's record how far it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import dagster as dg

from pkm_pipelines import settings
from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.progress import NullProgress, Progress
from pkm_pipelines.operations.jobs import JobProgress

_ATTACHED: ContextVar[tuple[Lakehouse, Progress] | None] = ContextVar("attached", default=None)


@contextmanager
def attached(lake: Lakehouse, progress: Progress) -> Iterator[None]:
    """Within this block, runs of this process use `lake` and report to `progress`.

    Dagster builds resources anew for each run, so what the command line has open already is handed over beside
    them and not through them.
    """
    token = _ATTACHED.set((lake, progress))
    try:
        yield
    finally:
        _ATTACHED.reset(token)


@cache
def _opened(config_file: str | None) -> Lakehouse:
    return Lakehouse.open(settings.load(Path(config_file) if config_file else None))


class LakehouseResource(dg.ConfigurableResource):
    """The lakehouse of a `pkm.toml`; without `config_file`, of the nearest one."""

    config_file: str | None = None

    @property
    def lake(self) -> Lakehouse:
        """The lakehouse: the one that is attached, else this process's own, which stays open."""
        if (given := _ATTACHED.get()) is not None:
            return given[0]
        return _opened(self.config_file)

    def progress(self, context: dg.AssetExecutionContext) -> Progress:
        """A listener that writes the run's record in state, for `pkm status`, and passes on to the one attached."""
        given = _ATTACHED.get()
        inner = given[1] if given else LogProgress(context.log)
        # Who attached a lakehouse says how the run ended; else the daemon's sensors do.
        return JobProgress(self.lake.state, context.run.run_id, inner, is_watched=given is None)


class LogProgress(NullProgress):
    """Writes stages and notes to the run's log."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._stage = ""

    def stage(self, name: str, total: int | None = None, unit: str = "notes") -> None:
        """Log a stage when it begins, and when its total is known."""
        line = name if total is None else f"{name}: {total} {unit}"
        if line != self._stage:
            self._log.info(line)
            self._stage = line

    def note(self, message: str) -> None:
        """Log a note as a warning: it is what a reader of the run should see."""
        self._log.warning(message)
