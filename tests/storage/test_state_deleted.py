"""A lakehouse is deleted while its state service is still there, and made anew at the same place."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from pkm_pipelines.settings import StateSettings
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_client import State


def test_what_was_deleted_is_not_remembered(work: Path) -> None:
    location = Location((work / "state").as_uri())
    settings = StateSettings(idle_seconds=30)
    with State.connect(location, settings, work / "run") as state:
        state.put("note:vault:a.md", b"seen")
        first = state.info()
        shutil.rmtree(work / "state")
        time.sleep(1)
        assert state.get("note:vault:a.md") is None
        assert state.info()["pid"] != first["pid"]
        state.put("note:vault:b.md", b"seen")
        state.stop_service()
    with State.connect(location, settings, work / "run") as state:
        assert [key for key, _ in state.scan("note:")] == ["note:vault:b.md"]
        state.stop_service()
