"""What lies in the state's object store, and how it is kept small. Runs inside the state service only.

SlateDB is a log-structured merge tree (P. O'Neil et al., 1996): writes go to a log, the log becomes small sorted tables
(level 0), and tables become sorted runs. A read looks into every table and run, and an opening replays the log. SlateDB
compacts when eight tables wait, and collects what nothing uses every ten minutes of a service's life, which a service
that goes when idle seldom has. So both can be asked for: one compaction of everything into one run, which also
drops what was deleted, and one collection.

A checkpoint keeps one moment of the state readable, whatever is written, compacted and collected after it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from typing import TYPE_CHECKING, Any, cast

from slatedb import uniffi as slatedb

from pkm_pipelines.model.errors import SettingsError, StoreError
from pkm_pipelines.storage.endpoint import first_line, open_store
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_wire import Message

if TYPE_CHECKING:
    from pkm_pipelines.storage.slate import Database

FOLDER = "db"
_TABLES = "compacted"
COLLECT_MIN_AGE_MS = 300_000
"""Younger objects may be in the middle of becoming used."""
MAX_CHECKPOINT_SECONDS = 366 * 24 * 3600.0


async def figures(location: Location) -> Message:
    """How many objects and bytes the state has, and what of it is in use.

    `tables` wait for compaction, `runs` are the result of it; `table_bytes` is the estimated size of both. The rest of
    `bytes` is the log, manifests, and what compaction left behind for as long as checkpoints (SlateDB's own last
    for 15 minutes) or age keep it. `stale` are the objects of log and manifests that are old enough to be collected.
    """
    manifest = await _admin(location).read_manifest(None)
    objects, stale, size = await asyncio.to_thread(_measure, location)
    tables = [] if manifest is None else manifest.l0
    runs = [] if manifest is None else manifest.compacted
    return {
        "files": objects,
        "stale": stale,
        "bytes": size,
        "tables": len(tables),
        "runs": len(runs),
        "table_bytes": sum(part.estimated_size_bytes for part in (*tables, *runs)),
        "checkpoints": 0 if manifest is None else len(manifest.checkpoints),
    }


async def compact(database: Database, location: Location) -> Message:
    """Ask for one compaction of all tables and runs into one; answers its id and its `sources`, none if it is one run.

    The compactor, which is part of the open database, does it in the background (it looks every five seconds). What is
    written meanwhile is not part of it. A compaction that was under way already may have a source first; then
    this one fails, and nothing else happens.
    """
    await database.flush_to_table()
    admin = _admin(location)
    manifest = await admin.read_manifest(None)
    if manifest is None or (not manifest.l0 and len(manifest.compacted) <= 1):
        return {"id": None, "sources": []}
    views, runs = [view.id for view in manifest.l0], [run.id for run in manifest.compacted]
    sources = [slatedb.SourceId.SST_VIEW(view) for view in views] + [slatedb.SourceId.SORTED_RUN(run) for run in runs]
    into = min(runs, default=0)
    # The generated bindings do not say that these are kinds of `SourceId` and `CompactionSpec`.
    spec = slatedb.CompactionSpec.TIERED(segment=b"", sources=cast(Any, sources), destination=into)
    submitted = await admin.submit_compaction(cast(Any, spec))
    return {"id": submitted.id, "sources": [*views, *(f"run {run}" for run in runs if run != into)]}


async def compaction(location: Location, compaction_id: str, sources: list[str]) -> Message:
    """How a compaction stands: `done` when none of its sources is in use any more, `failed` when it never will be."""
    admin = _admin(location)
    found = await admin.read_compaction(compaction_id, None)
    manifest = await admin.read_manifest(None)
    used = set[str]()
    if manifest is not None:
        used = {view.id for view in manifest.l0} | {f"run {run.id}" for run in manifest.compacted}
    done = not used.intersection(sources)
    return {"done": done, "failed": not done and found is not None and found.status.name == "FAILED"}


async def collect(location: Location) -> None:
    """Remove objects that nothing uses and that are old enough; expired checkpoints go too."""
    rule = slatedb.GarbageCollectorDirectoryOptions(min_age_ms=COLLECT_MIN_AGE_MS, dry_run=False)
    options = slatedb.GarbageCollectorOptions(
        manifest_options=rule,
        wal_options=rule,
        wal_fence_options=rule,
        compacted_options=rule,
        compactions_options=rule,
    )
    await _admin(location).run_gc_once(options)


async def checkpoint(database: Database, location: Location, name: str, seconds: float) -> Message:
    """Keep the state as it is now for so long; answers the id of the checkpoint."""
    if not 0 < seconds <= MAX_CHECKPOINT_SECONDS or not 0 < len(name) <= 200:
        raise ValueError("a checkpoint has a name and lasts for a year at most")
    await database.flush_to_table()  # a manifest knows of the log only what was there when it was written
    options = slatedb.CheckpointOptions(lifetime_ms=int(seconds * 1000), source=None, name=name)
    made = await _admin(location).create_detached_checkpoint(options)
    return {"id": made.id}


async def checkpoints(location: Location) -> Message:
    """The named checkpoints, oldest first; SlateDB's own, which have no name, are left out."""
    found = await _admin(location).list_checkpoints(None)
    return {
        "checkpoints": [
            {"id": one.id, "name": one.name, "created": one.create_time_secs, "expires": one.expire_time_secs}
            for one in sorted(found, key=lambda one: (one.create_time_secs, one.id))
            if one.name is not None
        ]
    }


async def drop_checkpoint(location: Location, checkpoint_id: str) -> Message:
    """Let a named checkpoint go; answers whether there was one."""
    named = [one["id"] for one in (await checkpoints(location))["checkpoints"]]
    if checkpoint_id in named:
        await _admin(location).delete_checkpoint(checkpoint_id)
    return {"dropped": checkpoint_id in named}


def open_slate(location: Location) -> tuple[slatedb.ObjectStore, str]:
    """SlateDB's handle for a location, and the path of the database in it."""
    if location.is_local:
        location.path.mkdir(parents=True, exist_ok=True)
        builder = slatedb.ObjectStoreBuilder(slatedb.ObjectStoreType.LOCAL)
        builder.with_url(str(location.path))  # a plain path: it takes any name, where a file:// URL drops or mangles it
        return builder.build(), FOLDER
    if re.search(r"[^A-Za-z0-9/_.=+@,:;&$!'() -]", location.prefix):
        raise SettingsError(f"state: {location.url}: SlateDB mangles a prefix with other than plain characters")
    builder = slatedb.ObjectStoreBuilder(slatedb.ObjectStoreType.S3)
    for name, value in {"bucket": location.bucket, **location.s3().object_store()}.items():
        builder.with_config(name, value)
    return builder.build(), "/".join(filter(None, (location.prefix, FOLDER)))


def _admin(location: Location) -> slatedb.Admin:
    store, path = open_slate(location)
    return slatedb.AdminBuilder(path, store).build()


def _measure(location: Location) -> tuple[int, int, int]:
    """Objects, how many of them are stale, and bytes."""
    from obstore.exceptions import BaseError

    old = dt.datetime.now(dt.UTC) - dt.timedelta(milliseconds=COLLECT_MIN_AGE_MS)
    objects = stale = size = 0
    try:
        for entry in (entry for page in open_store(location.child(FOLDER)).list() for entry in page):
            objects += 1
            size += entry["size"]
            stale += entry["last_modified"] < old and not entry["path"].startswith(f"{_TABLES}/")
    except BaseError as error:
        raise StoreError(f"{location.url}: the state cannot be listed: {first_line(error)}") from error
    return objects, stale, size
