"""One operation on one Iceberg table: with which settings, on what, and what its commits have saved."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pkm_pipelines.model import keys
from pkm_pipelines.model.progress import NullProgress, Progress
from pkm_pipelines.operations.maintenance import Work
from pkm_pipelines.settings import MaintenanceSettings
from pkm_pipelines.storage.iceberg_history import count
from pkm_pipelines.storage.iceberg_schema import WRITE_MODE, ZORDER, kind_of, names_in
from pkm_pipelines.tables.compact import Packing
from pkm_pipelines.tables.expire import Keeping

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from pkm_pipelines.operations.stores import Stores


@dataclass(frozen=True)
class Job:
    """One operation on one table."""

    stores: Stores
    operation: str
    table: str
    progress: Progress = field(default_factory=NullProgress)
    run_id: str = ""

    @property
    def settings(self) -> MaintenanceSettings:
        """The limits and ages."""
        return self.stores.settings.maintenance

    @property
    def properties(self) -> Mapping[str, str]:
        """What each of its snapshots carries."""
        return {"pkm.run-id": self.run_id} if self.run_id else {}

    def load(self) -> Table:
        """The table as it is now."""
        return self.stores.iceberg.load(self.table)

    @property
    def grace(self) -> dt.timedelta:
        """How long files of expired snapshots stay, so that reads under way can end."""
        return dt.timedelta(minutes=self.settings.file_grace_minutes)

    def work(
        self,
        what: str,
        files: int = 0,
        size: int = 0,
        saves_files: int = 0,
        saves_bytes: int = 0,
        *,
        estimated: bool = False,
    ) -> Work:
        """One line of a plan."""
        return Work(self.table, what, files, size, saves_files, saves_bytes, estimated)

    def saved_by(self, snapshot_ids: Iterable[int | None]) -> tuple[int, int]:
        """The files and bytes that there are less of by some commits of ours, as their summaries tell."""
        metadata = self.load().metadata
        found = [metadata.snapshot_by_id(number) for number in snapshot_ids if number is not None]
        files = size = 0
        for one in (snapshot for snapshot in found if snapshot is not None):
            files += count(one, "deleted-data-files") + count(one, "removed-delete-files")
            files -= count(one, "added-data-files") + count(one, "added-delete-files")
            size += count(one, "removed-files-size") - count(one, "added-files-size")
        return files, size


def packing(job: Job, table: Table) -> Packing:
    """How a table is compacted: smaller files where a merge rewrites whole ones."""
    settings, properties = job.settings, table.properties
    is_rewritten = kind_of(table) == "state" and properties.get(WRITE_MODE, "copy-on-write") == "copy-on-write"
    target = settings.target_state_file_mb if is_rewritten else settings.target_file_mb
    return Packing(
        target_bytes=target << 20,
        batch_bytes=settings.batch_mb << 20,
        memory_bytes=job.stores.settings.tables.memory_mb << 20,
        unsorted=settings.compact_unsorted,
        zorder=names_in(properties, ZORDER),
    )


def keeping(job: Job) -> Keeping:
    """Which snapshots of a table are kept."""
    settings = job.settings
    now = dt.datetime.now(dt.UTC)
    days = retention_days(settings, job.table)
    intents = frozenset(
        key.removeprefix(keys.INTENT)
        for key, value in job.stores.state.scan(keys.INTENT)
        if json.loads(value)["table"] == job.table
    )
    return Keeping(
        newest=settings.keep_snapshots,
        since=now - dt.timedelta(hours=settings.snapshot_age_hours) if settings.snapshot_age_hours else None,
        before=now - dt.timedelta(days=days) if days else None,
        op_ids=intents,
    )


def retention_days(settings: MaintenanceSettings, table: str) -> int:
    """How long the layer of a table is kept, in days; 0 is always."""
    layer = table.partition(".")[0]
    return {"bronze": settings.bronze_days, "silver": settings.silver_days, "gold": settings.gold_days}.get(layer, 0)
