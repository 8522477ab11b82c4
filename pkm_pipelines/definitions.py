"""The one Definitions object: what Dagster loads from here."""

from __future__ import annotations

import dagster as dg

from assets import bronze, checks, gold, silver, vectors
from resources.io_managers import IcebergIOManager, LanceIOManager
from resources.lakehouse import LakehouseResource
from schedules import daily, jobs, maintenance, sensors

LAKEHOUSE = LakehouseResource()
ASSETS = dg.with_source_code_references(dg.load_assets_from_modules([bronze, silver, gold, vectors]))

defs = dg.Definitions(
    assets=ASSETS,
    asset_checks=checks.ALL,
    jobs=[*jobs.ALL, maintenance.maintain],
    schedules=[daily.daily],
    sensors=[
        *sensors.ALL,
        maintenance.debt,
        dg.AutomationConditionSensorDefinition(
            "keep_fresh", target=jobs.DERIVED, default_status=dg.DefaultSensorStatus.STOPPED
        ),
    ],
    # A run is one process, also one that is started from the graph: the model is loaded once, and the run's record
    # in state names the process to watch.
    executor=dg.in_process_executor,
    resources={
        "lakehouse": LAKEHOUSE,
        "iceberg": IcebergIOManager(lakehouse=LAKEHOUSE),
        "lance": LanceIOManager(lakehouse=LAKEHOUSE),
    },
)
