"""The doctor: finds what is wrong, says what to do, and never breaks itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkm_pipelines.operations.doctor import Check, doctor
from pkm_pipelines.operations.stores import Stores
from pkm_pipelines.settings import Settings
from tests.support.lake import lake_settings, open_lake

pytest_plugins = ["tests.support.s3"]


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def vault(work: Path) -> Path:
    folder = work / "vault"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n")
    return folder


def test_a_new_lakehouse_is_well(work: Path, vault: Path) -> None:
    with open_lake(work / "home", vault) as lake:
        checks = lake.doctor()
    assert {check.outcome for check in checks} <= {"ok", "warn"}, checks
    assert "has changes" in by_name(checks)["source vault"].message
    assert all(check.advice for check in checks if check.outcome != "ok")


def test_an_s3_lakehouse_is_well(work: Path, vault: Path, s3_endpoint: object) -> None:
    place = s3_endpoint.location().url  # type: ignore[attr-defined]
    urls = {name: f"{place}/{name}" for name in ("warehouse", "vectors", "state", "objects")}
    with open_lake(work / "home", vault, **urls) as lake:
        checks = by_name(lake.doctor())
    assert {check.outcome for check in checks.values()} <= {"ok", "warn"}, checks
    assert "refuses to overwrite" in checks["warehouse store"].message


def test_each_thing_that_is_wrong_is_one_finding(work: Path, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An unknown model is asked for over the network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (work / "home").mkdir()
    (work / "file").write_text("no folder")
    settings = lake_settings(
        work / "home",
        work / "gone",
        vectors=(work / "file" / "vectors").as_uri(),
        catalog="postgresql+psycopg2://me:hunter2@127.0.0.1:1/pkm",
        embedder={"model": "no-such-model-anywhere"},
    )
    stores = Stores(settings)
    try:
        checks = by_name(doctor(stores))
    finally:
        stores.close()
    wrong = {name: check.outcome for name, check in checks.items() if check.outcome != "ok" and name != "disk"}
    assert wrong == {
        "vectors store": "fail",
        "catalog": "fail",
        "model": "fail",
        "source vault": "fail",
    }
    assert all(checks[name].advice for name in wrong)
    assert checks["model"].message.startswith("embedder.model: 'no-such-model-anywhere'")
    assert "hunter2" not in str(checks)
    assert "does not exist" in checks["source vault"].message


def test_packages_are_compared_with_what_was_tested(work: Path, monkeypatch: pytest.MonkeyPatch, vault: Path) -> None:
    import pkm_pipelines.operations.doctor as module

    constraints = work / "constraints.txt"
    constraints.write_text("typer==0.0.1  # older\nRich==15.0.0\n")
    monkeypatch.setattr(module, "_CONSTRAINTS", constraints)
    monkeypatch.setattr(
        module.metadata, "requires", lambda _: ["typer>=0.1", "rich", "no-such-package-42>1", "x; extra == 'dev'"]
    )
    outcomes = {check.outcome: check.message for check in module._packages()}
    assert outcomes["fail"] == "missing: no-such-package-42"
    assert "typer" in outcomes["warn"] and "tested: 0.0.1" in outcomes["warn"] and "rich" not in outcomes["warn"]


def test_little_room_is_said_before_it_is_none(work: Path, monkeypatch: pytest.MonkeyPatch, vault: Path) -> None:
    import pkm_pipelines.operations.doctor as module

    stores = Stores(Settings(home=work))
    usage = module.shutil.disk_usage(work)
    for free, outcome in ((1 << 40, "ok"), (2 << 30, "warn"), (1 << 20, "fail")):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert {check.outcome for check in module._disk(stores)} == {outcome}


def test_a_check_that_breaks_is_a_finding() -> None:
    import pkm_pipelines.operations.doctor as module

    def look() -> Check:
        raise ZeroDivisionError("by postgresql://me:hunter2@h/db\nsecond line")

    assert module._tried("x", look, "do this") == [
        Check("x", "fail", "ZeroDivisionError: by postgresql://me:***@h/db", "do this")
    ]
