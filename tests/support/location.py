"""The code location as Dagster loads it, over a lakehouse in a temporary folder.

Partitions, sensors and schedules follow the settings when their modules are imported, so each lakehouse of a
test needs them anew.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from pkm_pipelines import settings
from pkm_pipelines.lakehouse import Lakehouse
from pkm_pipelines.model.progress import CountingProgress
from resources.lakehouse import LakehouseResource, attached

_FOLLOW_SETTINGS = ("assets", "schedules", "pkm_pipelines.definitions")


@dataclass(frozen=True)
class CodeLocation:
    """What Dagster has loaded, an instance of its own, and the lakehouse that both reach."""

    lake: Lakehouse
    progress: CountingProgress
    instance: dg.DagsterInstance
    defs: dg.Definitions

    def module(self, name: str) -> ModuleType:
        """A module as this location has it: `assets.bronze`, `schedules.sensors`."""
        return importlib.import_module(name)

    def sensor(self, name: str, cursor: str | None = None) -> SensorExecutionData:
        """One tick of a sensor."""
        sensor = self.defs.get_repository_def().get_sensor_def(name)
        context = dg.build_sensor_context(
            self.instance, cursor, definitions=self.defs, resources={"lakehouse": LakehouseResource()}
        )
        return sensor.evaluate_tick(context)

    def run(
        self, job: str = "update", *, config: Mapping[str, Any] | dg.RunConfig | None = None, **options: Any
    ) -> dg.ExecuteInProcessResult:
        """One run of a job in this process."""
        return self.defs.resolve_job_def(job).execute_in_process(
            run_config=config, instance=self.instance, raise_on_error=False, **options
        )


@contextmanager
def code_location(home: Path, sources: Sequence[tuple[str, str, Path]]) -> Iterator[CodeLocation]:
    """Load the code location over a lakehouse at `home`; `sources` are (name, kind, path)."""
    home.mkdir(parents=True, exist_ok=True)
    lines = ['runtime_dir = "run"', "partitions_start = 2024-01-01", "[embedder]", 'model = "hashing"']
    lines += ["[state_service]", "idle_seconds = 20"]
    for name, kind, path in sources:
        lines += ["[[sources]]", f'name = "{name}"', f'kind = "{kind}"', f'path = "{path}"']
    file = home / settings.FILE_NAME
    file.write_text("\n".join(lines) + "\n")
    before = _take_out()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PKM_CONFIG", str(file))
        progress = CountingProgress()
        try:
            defs = importlib.import_module("pkm_pipelines.definitions").defs
            with (
                Lakehouse.open(settings.load()) as lake,
                attached(lake, progress),
                dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}}) as instance,
            ):
                yield CodeLocation(lake, progress, instance, defs)
        finally:
            _take_out()
            sys.modules.update(before)


def _take_out() -> dict[str, ModuleType]:
    """Forget the modules that follow the settings; returns them."""
    names = [name for name in sys.modules if name in _FOLLOW_SETTINGS or name.startswith(("assets.", "schedules."))]
    return {name: sys.modules.pop(name) for name in names}
