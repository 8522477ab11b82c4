"""Settings: who wins, what is refused and in which words, and what is never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pkm_pipelines.model.errors import SettingsError
from pkm_pipelines.settings import Settings, find_file, load, unknown_variables


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PKM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(work)


def write(folder: Path, text: str) -> Path:
    file = folder / "pkm.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_lie_below_home(work: Path) -> None:
    settings = load()
    assert settings.home == work
    assert settings.warehouse == (work / ".pkm" / "warehouse").as_uri()
    assert settings.catalog == f"sqlite:///{work}/.pkm/catalog.db"
    assert {settings.vectors, settings.state, settings.objects} == {
        (work / ".pkm" / name).as_uri() for name in ("vectors", "state", "objects")
    }


def test_overrides_win_over_environment_over_file_over_defaults(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(
        work, 'batch_notes = 10\nbatch_mb = 11\nsensor_seconds = 40\n[embedder]\nmodel = "a"\nbatch_size = 3\n'
    )
    monkeypatch.setenv("PKM_BATCH_MB", "12")
    monkeypatch.setenv("PKM_SENSOR_SECONDS", "50")
    monkeypatch.setenv("PKM_EMBEDDER__MODEL", "hashing")
    settings = load(file, sensor_seconds=60)
    assert (settings.batch_notes, settings.batch_mb, settings.sensor_seconds) == (10, 12, 60)
    assert settings.daily_hour_utc == 3
    # One nested value of the environment leaves its neighbours in the file alone.
    assert (settings.embedder.model, settings.embedder.batch_size, settings.embedder.chunk_tokens) == (
        "hashing",
        3,
        200,
    )


def test_an_empty_variable_is_none_at_all(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKM_BATCH_MB", "")
    assert load(write(work, "batch_mb = 11\n")).batch_mb == 11


def test_sources_from_the_environment_are_json(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(work, '[[sources]]\nname = "a"\npath = "a"\n')
    monkeypatch.setenv("PKM_SOURCES", '[{"name": "b", "kind": "git", "path": "~/b"}]')
    settings = load(file)
    assert [(source.name, source.kind) for source in settings.sources] == [("b", "git")]
    assert settings.source_path(settings.source("b")) == Path.home() / "b"


def test_paths_start_from_home_and_know_the_tilde(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "elsewhere").mkdir()
    file = write(
        work, 'home = "data"\nruntime_dir = "run"\nspill_dir = "~/spill"\n[[sources]]\nname="n"\npath="notes"\n'
    )
    monkeypatch.chdir(work / "elsewhere")
    settings = load(file)
    # Relative to the file, wherever the command is called.
    assert settings.home == work / "data"
    assert settings.data_dir == work / "data" / ".pkm"
    assert settings.runtime_dir == work / "data" / "run"
    assert settings.spill_dir == Path.home() / "spill"
    assert settings.source_path(settings.sources[0]) == work / "data" / "notes"


def test_a_home_with_blanks_and_umlauts_gives_valid_urls(work: Path) -> None:
    from pkm_pipelines.storage.location import Location

    home = work / "Mein Gedächtnis 100%"
    settings = load(None, home=home)
    assert Location(settings.warehouse).path == home / ".pkm" / "warehouse"


def test_the_nearest_file_counts_unless_one_is_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "a" / "b").mkdir(parents=True)
    assert find_file() is None
    file = write(work, "")
    monkeypatch.chdir(work / "a" / "b")
    assert find_file() == file
    monkeypatch.setenv("PKM_CONFIG", str(work / "other.toml"))
    assert find_file() == work / "other.toml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wearhouse = 's3://b/w'", "wearhouse: there is no such setting (did you mean warehouse?)"),
        ("[embedder]\nmodle = 'x'", "embedder.modle: there is no such setting (did you mean model?)"),
        ("warehouse = '/tmp/w'", "warehouse: must be a file:/// or s3:// URL"),
        ("partitions_start = 2999-01-01", "partitions_start: must not lie in the future"),
        ("catalog = 'catalog.db'", "catalog: must be a URL that starts with one of sqlite, postgresql"),
        ("batch_notes = 0", "batch_notes: Input should be greater than 0"),
        ("batch_notes = 'many'", "batch_notes: Input should be a valid integer"),
        ("[[sources]]\nname = 'My Notes'\npath = 'x'", "sources.0.name: must be at most 63 lower case letters"),
        ("[sources]\nname = 'n'\npath = 'x'", "sources: must be a list, each of it a block `[[sources]]`"),
        ("[[sources]]\nname = 'n'", "sources.0.path: Field required"),
        (
            "[[sources]]\nname='n'\npath='a'\ninclude = ['*.md', '[z-a]']",
            "sources.0.include: glob '[z-a]': not a glob: a range in its brackets runs backwards",
        ),
        ("[[sources]]\nname='n'\npath='a'\nexclude = ['/']", "sources.0.exclude: glob '/': it names nothing"),
        ("[[sources]]\nname='n'\npath='a'\n[[sources]]\nname='n'\npath='b'", "sources: two sources are called 'n'"),
        ("home = 3", "home: must be a path in quotes"),
        ("= 3", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key(work: Path, text: str, message: str) -> None:
    file = write(work, text)
    with pytest.raises(SettingsError) as error:
        load(file)
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PKM_BATCH_MB", "much", "PKM_BATCH_MB: Input should be a valid integer"),
        ("PKM_EMBEDDER__BATCH_SIZE", "0", "PKM_EMBEDDER__BATCH_SIZE: Input should be greater than 0"),
        ("PKM_EMBEDDER__MODLE", "x", "PKM_EMBEDDER__MODLE: there is no such setting (did you mean model?)"),
        ("PKM_WAREHOSE", "s3://b/w", "PKM_WAREHOSE: there is no such setting (did you mean PKM_WAREHOUSE?)"),
        ("PKM_SOMETHING_ELSE", "1", "PKM_SOMETHING_ELSE: there is no such setting"),
        ("PKM_SOURCES", "[{", "PKM_SOURCES: must be JSON"),
        ("PKM_SOURCES", '[{"name": "n", "path": "p", "kind": "zip"}]', "PKM_SOURCES: 0.kind: Input should be 'folder'"),
    ],
)
def test_a_wrong_variable_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        load(write(work, "batch_mb = 5\n"))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_how_to_make_one(work: Path) -> None:
    with pytest.raises(SettingsError, match=r"no such settings file .*pkm init"):
        load(work / "none.toml")


def test_an_unknown_source_names_the_known_ones(work: Path) -> None:
    settings = load(write(work, '[[sources]]\nname="n"\npath="a"\n'))
    with pytest.raises(SettingsError, match=r"no source is called 'm' \(there are: n\)"):
        settings.source("m")


@pytest.mark.parametrize("name", ["what?", "x%41y"])
def test_a_folder_that_sqlite_cannot_name_is_refused(work: Path, name: str) -> None:
    (work / name).mkdir()
    with pytest.raises(SettingsError, match=r"home: its path has a '\?' or a '%'"):
        load(write(work / name, ""))
    assert load(write(work, f"home = '{work}/50% off #1 é'\n")).home.name == "50% off #1 é"


def test_misspelt_variables_are_found() -> None:
    known = ["PKM_BATCH_MB", "PKM_CONFIG", "PKM_EMBEDDER__MODEL", "PKM_TEST_SEED", "HOME"]
    environ = dict.fromkeys([*known, "PKM_BATCHMB"], "1")
    assert unknown_variables(environ) == ["PKM_BATCHMB"]


SECRET = "hunter2-very-secret"


def test_a_password_in_the_catalog_is_never_shown(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKM_CATALOG", f"postgresql+psycopg2://me:{SECRET}@db.example/pkm")
    settings = load()
    assert SECRET in settings.catalog
    shown = f"{settings!r} {settings}"
    assert SECRET not in shown
    assert "postgresql+psycopg2://me:***@db.example/pkm" in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PKM_CATALOG", f"mongodb://me:{SECRET}@db.example/pkm"),
        ("PKM_WAREHOUSE", f"s3://key:{SECRET}@bucket/w"),
        ("PKM_VECTORS", f"https://key:{SECRET}@bucket/w"),
        ("PKM_SOURCES", f'[{{"name": "n", "path": "{SECRET}", "kind": "{SECRET}"}}]'),
        ("PKM_SOURCES", f"{{{SECRET}"),
        ("PKM_STATE_SERVICE__FLUSH_MS", SECRET),
    ],
)
def test_no_error_repeats_a_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        load()
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None and error.value.__suppress_context__
    assert str(error.value).startswith(name)


def test_also_direct_construction_hides_its_input() -> None:
    with pytest.raises(ValueError, match="catalog") as error:
        Settings(catalog=f"mongodb://me:{SECRET}@db.example/pkm")
    assert SECRET not in str(error.value)
