"""The Dagster instance: written once, kept up to date, never over somebody's edits, and valid for Dagster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pkm_pipelines.cli.instance import TEMPLATE, WORKSPACE, prepare_instance
from pkm_pipelines.model.errors import SettingsError
from pkm_pipelines.settings import Settings


@pytest.fixture
def settings(work: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("DAGSTER_HOME", "PKM_CONFIG"):
        # Set and deleted, so that what the code under test sets is undone after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(work)
    return Settings(home=work)


def test_dagster_accepts_it_and_everything_lies_in_the_folder(settings: Settings, work: Path) -> None:
    import dagster as dg
    from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

    folder = prepare_instance(settings)
    assert folder == work / ".pkm" / "dagster"
    assert os.environ["DAGSTER_HOME"] == str(folder)
    with dg.DagsterInstance.get() as instance:
        concurrency = instance.get_concurrency_config()
        assert concurrency.pool_config.default_pool_limit == 1
        assert concurrency.pool_config.pool_granularity.value == "run"
        assert concurrency.run_queue_config.max_concurrent_runs == 4
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
        assert instance.freshness_enabled
        assert not instance.telemetry_enabled
        assert instance.root_directory == str(folder)
        logs = instance.compute_log_manager
        assert isinstance(logs, LocalComputeLogManager)
        assert logs._base_dir.startswith(str(folder))
        assert (folder / "history" / "runs.db").is_file()


def test_an_outdated_copy_is_replaced_and_an_edited_one_kept(settings: Settings) -> None:
    copy = prepare_instance(settings) / "dagster.yaml"
    fresh = copy.read_text()
    assert fresh.endswith(TEMPLATE.read_text())

    old = "telemetry:\n  enabled: true\n"
    import hashlib

    digest = hashlib.sha256(old.encode()).hexdigest()
    copy.write_text(f"# copy of resources/dagster.yaml, sha256 {digest}\n{old}")
    prepare_instance(settings)
    assert copy.read_text() == fresh

    edited = fresh.replace("max_concurrent_runs: 4", "max_concurrent_runs: 9")
    copy.write_text(edited)
    prepare_instance(settings)
    assert copy.read_text() == edited


def test_an_instance_of_the_callers_own_is_used(
    settings: Settings, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(work / "mine"))
    assert prepare_instance(settings) == work / "mine"
    assert not (work / ".pkm").exists()


def test_two_lakehouses_of_one_process_have_two_instances(settings: Settings, work: Path) -> None:
    assert prepare_instance(settings) == work / ".pkm" / "dagster"
    assert prepare_instance(Settings(home=work / "other")) == work / "other" / ".pkm" / "dagster"
    assert os.environ["DAGSTER_HOME"] == str(work / "other" / ".pkm" / "dagster")


def test_the_settings_file_reaches_the_processes_that_dagster_starts(settings: Settings, work: Path) -> None:
    (work / "pkm.toml").write_text("")
    prepare_instance(settings)
    assert os.environ["PKM_CONFIG"] == str(work / "pkm.toml")


def test_a_folder_that_cannot_be_written_is_named(settings: Settings, work: Path) -> None:
    (work / ".pkm").write_text("a file, where a folder should be")
    with pytest.raises(SettingsError, match=r"\.pkm/dagster: cannot be written"):
        prepare_instance(settings)


def test_the_workspace_names_the_code_location() -> None:
    import yaml

    target = yaml.safe_load(WORKSPACE.read_text())["load_from"][0]["python_module"]
    assert target["module_name"] == "pkm_pipelines.definitions"
    assert (WORKSPACE.parent / target["working_directory"] / "pkm_pipelines" / "definitions.py").is_file()
