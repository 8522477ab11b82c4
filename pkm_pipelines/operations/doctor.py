"""Whether everything that the lakehouse needs is there and works, and what to do where it is not.

Each check tries the real thing: it writes to every store, starts the state service, embeds a sentence. What it
leaves behind it takes away again. A check that breaks is a finding, never the end of the others.
"""

from __future__ import annotations

import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import PkmError, StoreError
from pkm_pipelines.model.urls import redacted
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.storage.location import Location

Outcome = Literal["ok", "warn", "fail"]
DISTRIBUTION = "pkm-pipelines"
MINIMUM_PYTHON = (3, 11)
_LITTLE_SPACE, _TOO_LITTLE_SPACE = 5 << 30, 500 << 20
_CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `advice` says what to do unless it is `ok`."""

    name: str
    outcome: Outcome
    message: str
    advice: str = ""


def doctor(stores: Stores) -> list[Check]:
    """Look at everything, in the order in which one would repair it."""
    settings = stores.settings
    checks: list[Check] = [_python(), *_tried("packages", _packages, "make venv")]
    for name in ("warehouse", "vectors", "state", "objects"):
        advice = f"check the setting {name}, the rights on it and, for s3://, the AWS_* variables"
        checks += _tried(f"{name} store", lambda name=name: _store(name, getattr(settings, name)), advice)
    checks += _tried("catalog", lambda: _catalog(stores), "check the setting catalog, and that its server runs")
    checks += _tried("state service", lambda: _state(stores), "check the setting state; is its host reachable?")
    checks += _tried("model", lambda: _model(stores), "check [embedder]: the model must be installed, or a folder")
    if not settings.sources:
        checks.append(Check("sources", "warn", "there are no sources", "add one to pkm.toml ([[sources]])"))
    for source in settings.sources:
        advice = "correct its [[sources]] entry in pkm.toml, or mount its disk"
        checks += _tried(f"source {source.name}", lambda name=source.name: _source(stores, name), advice)
    checks += _tried("disk", lambda: _disk(stores), "")
    return checks


def _tried(name: str, look: Callable[[], Iterator[Check] | Check], advice: str) -> list[Check]:
    """What `look` finds; if it breaks, that is the finding."""
    try:
        found = look()
        return [found] if isinstance(found, Check) else list(found)
    except PkmError as error:
        return [Check(name, "fail", redacted(str(error)), advice)]
    except Exception as error:  # noqa: BLE001  # what may break here is exactly what is being asked for
        first = (str(error).strip().splitlines() or [""])[0]
        return [Check(name, "fail", redacted(f"{type(error).__name__}: {first}"), advice)]


def _python() -> Check:
    shown = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < MINIMUM_PYTHON:
        return Check("python", "fail", shown, "Python 3.11 or newer is needed: make PYTHON=python3.12 venv")
    return Check("python", "ok", shown)


def _packages() -> Iterator[Check]:
    """Every package of the project is there; its version is the one that was tested."""
    tested = _tested_versions()
    missing: list[str] = []
    other: list[str] = []
    for requirement in metadata.requires(DISTRIBUTION) or ():
        if "extra ==" in requirement:
            continue
        found = re.match(r"[A-Za-z0-9._-]+", requirement)
        name = found.group() if found else requirement
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        wanted = tested.get(_normal(name))
        # A build for one kind of machine (2.13.0+cpu) is the same release.
        if wanted and version.split("+")[0] != wanted:
            other.append(f"{name} {version} (tested: {wanted})")
    if missing:
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", "make venv")
    if other:
        yield Check("packages", "warn", f"not the tested version: {', '.join(other)}", "make distclean venv")
    if not missing and not other:
        yield Check("packages", "ok", f"{len(tested)} versions pinned, all as tested" if tested else "all there")


def _tested_versions() -> dict[str, str]:
    if not _CONSTRAINTS.is_file():
        return {}
    lines = (line.split("#")[0].strip() for line in _CONSTRAINTS.read_text(encoding="utf-8").splitlines())
    return {_normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _store(name: str, url: str) -> Check:
    """Reach it, be refused a second create of one key, and read back what was written."""
    import obstore

    from pkm_pipelines.model.errors import CorruptObjectError
    from pkm_pipelines.storage.endpoint import open_store, probe

    location = Location(url)
    probe(location)
    store = open_store(location)
    key, data = f".doctor-{uuid.uuid4().hex}", uuid.uuid4().bytes
    obstore.put(store, key, data)
    try:
        if bytes(obstore.get(store, key).bytes()) != data:
            raise CorruptObjectError(f"{url}: what was read is not what was written")
    finally:
        obstore.delete(store, key)
    return Check(f"{name} store", "ok", f"{url}: writes, reads and refuses to overwrite")


def _catalog(stores: Stores) -> Iterator[Check]:
    """It answers, and every table of the project has the format that this version writes."""
    from pkm_pipelines.operations.migrations import plan_migrations

    names = stores.iceberg.names()
    yield Check("catalog", "ok", f"{redacted(stores.settings.catalog)}: {len(names)} tables")
    try:
        due = [plan.table for plan in plan_migrations(stores)]
    except StoreError as error:
        yield Check("table formats", "fail", str(error), "install the version of the project that made the table")
        return
    if due:
        message = f"made by an older version of the project: {', '.join(due)}"
        yield Check("table formats", "fail", message, "back up, then pkm warehouse migrate")


def _state(stores: Stores) -> Check:
    key, value = f"{keys.DOCTOR}{uuid.uuid4().hex}", uuid.uuid4().bytes
    stores.state.put(key, value)
    try:
        if stores.state.get(key) != value:
            return Check(
                "state service", "fail", "it forgets what it is told", "look at its log; stop it, and try again"
            )
    finally:
        stores.state.delete(key)
    return Check("state service", "ok", "answers, and keeps what it is told")


def _model(stores: Stores) -> Check:
    if stores.settings.embedder.model == "none":
        return Check("model", "ok", "none: full-text search only")
    embedder = stores.embedder
    if embedder is None:
        return Check("model", "warn", "no model was loaded", "set embedder.model")
    vectors = embedder.encode(["A note about the sea.", "Eine Notiz über das Meer."])
    if vectors.shape != (2, embedder.dimension):
        return Check(
            "model",
            "fail",
            f"{embedder.name}: gave {vectors.shape[1]} numbers, not {embedder.dimension}",
            "other model?",
        )
    table = stores.vector_table
    if table is not None and stores.vectors.exists(table):
        stored = stores.vectors.schema(table).field("embedding").type.list_size
        if stored != embedder.dimension:
            return Check(
                "model",
                "fail",
                f"{embedder.name} makes {embedder.dimension} numbers, {table} holds {stored}",
                "set the model back, or rebuild the vectors",
            )
    return Check("model", "ok", f"{embedder.name}: {embedder.dimension} dimensions")


def _source(stores: Stores, name: str) -> Check:
    settings = stores.settings.source(name)
    path = stores.settings.source_path(settings)
    label = f"source {name}"
    if not path.exists():
        return Check(label, "fail", f"{path} does not exist", "mount it, or correct its path in pkm.toml")
    changed = stores.source(name).has_changes(stores.state)
    return Check(label, "ok", f"{path}: {'has changes; pkm run reads them' if changed else 'read to the end'}")


def _disk(stores: Stores) -> Iterator[Check]:
    settings = stores.settings
    local = [
        url
        for url in (settings.warehouse, settings.vectors, settings.state, settings.objects)
        if Location(url).is_local
    ]
    folders = [settings.home, *(Location(url).path for url in local)]
    seen: set[int] = set()
    for folder in folders:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        device = there.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(there).free
        shown = f"{free / (1 << 30):.1f} GiB free at {there}"
        if free < _TOO_LITTLE_SPACE:
            yield Check("disk", "fail", shown, "make room before the next run")
        elif free < _LITTLE_SPACE:
            yield Check("disk", "warn", shown, "make room soon")
        else:
            yield Check("disk", "ok", shown)
