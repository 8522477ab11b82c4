"""An endpoint that loses data without a word is refused before anything is written to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkm_pipelines.model.errors import StoreError, UnsafeEndpointError
from pkm_pipelines.storage.endpoint import open_store, probe
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.objects import ObjectStore
from tests.support.s3 import S3Endpoint, start_server
from tests.support.state import OpenState


def test_an_endpoint_that_honours_conditions_passes(store_location: Location) -> None:
    probe(store_location)
    assert not [entry for page in open_store(store_location).list() for entry in page]


def test_an_endpoint_that_ignores_conditions_is_refused(
    s3_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch, open_state: OpenState
) -> None:
    with start_server("--ignore-conditions") as unsafe:
        for name, value in unsafe.environment.items():
            monkeypatch.setenv(name, value)
        location = unsafe.location()
        for ask in (
            lambda: probe(location),
            lambda: ObjectStore(location).put(b"data"),
            lambda: open_state(location).put("a", b"1"),
        ):
            with pytest.raises(UnsafeEndpointError, match="ignores conditional writes"):
                ask()


def test_a_folder_that_cannot_be_made_is_named(work: Path) -> None:
    (work / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be"):
        probe(Location((work / "file" / "store").as_uri()))
