"""`pkm init`: a settings file that loads, for whatever lies there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.cli.template import detect_source, settings_text, source_name, write_settings
from pkm_pipelines.model.errors import SettingsError
from pkm_pipelines.settings import Settings, SourceSettings, load


@pytest.mark.parametrize(
    ("kind", "make"),
    [("folder", None), ("git", ["git", "init", "-q"]), ("git", ["git", "init", "-q", "--bare"])],
)
def test_detects_what_lies_there(work: Path, kind: str, make: list[str] | None) -> None:
    folder = work / "Mein Gedächtnis"
    folder.mkdir()
    if make:
        subprocess.run([*make, str(folder)], check=True)
    source = detect_source(folder)
    assert (source.name, source.kind, source.path) == ("mein-gedachtnis", kind, folder)


def test_a_folder_that_is_none_is_an_error(work: Path) -> None:
    (work / "file").write_text("")
    for path in (work / "none", work / "file"):
        with pytest.raises(SettingsError, match="no such folder"):
            detect_source(path)


def test_the_file_loads_and_means_the_folder(work: Path) -> None:
    vault = work / "notes"
    vault.mkdir()
    file = write_settings(work / "lake" / "pkm.toml", detect_source(vault))
    settings = load(file)
    assert settings.home == work / "lake"
    assert settings.source_path(settings.sources[0]) == vault
    assert settings == load(file, **Settings(home=work / "lake").model_dump(exclude={"sources"}))
    # Data beside somebody's repository is not committed by accident.
    assert (work / "lake" / ".pkm" / ".gitignore").read_text() == "*\n"


def test_a_source_inside_is_named_relative_so_that_the_folder_can_move(work: Path) -> None:
    (work / "notes").mkdir()
    text = write_settings(work / "pkm.toml", detect_source(work / "notes")).read_text()
    assert 'path = "notes"' in text


def test_refuses_to_overwrite_unless_forced(work: Path) -> None:
    source = detect_source(work)
    write_settings(work / "pkm.toml", source)
    (work / "pkm.toml").write_text("batch_mb = 5\n")
    with pytest.raises(SettingsError, match="--force"):
        write_settings(work / "pkm.toml", source)
    assert (work / "pkm.toml").read_text() == "batch_mb = 5\n"
    write_settings(work / "pkm.toml", source, force=True)
    assert load(work / "pkm.toml").sources == (source.model_copy(update={"path": Path()}),)


def test_every_commented_setting_is_true(work: Path) -> None:
    """Each `# key = value` line and each `# [section]`, uncommented, is valid and is the default."""
    text = settings_text(SourceSettings(name="n", kind="git", path=work))
    lines = [line[2:] for line in text.splitlines() if re.match(r"# ([a-z_]+ = (?!\"…)|\[)", line)]
    values = tomllib.loads(
        "\n".join(
            line
            for line in lines
            if "s3://" not in line
            and "postgresql" not in line
            and not line.startswith(("branch", "subfolder", "include", "exclude", "model", "[embedder]"))
        )
    )
    defaults = Settings(home=work)
    assert values.keys() >= {"batch_notes", "tables", "maintenance"}
    assert values["maintenance"]["auto"] is True
    for name, value in values.items():
        assert Settings(home=work, **{name: value}) == defaults, name


@given(st.text(min_size=1).filter(lambda name: "/" not in name and "\0" not in name))
def test_any_folder_name_gives_a_valid_source_and_file(name: str) -> None:
    assert SourceSettings(name=source_name(Path("/x") / name), path=Path("/x"))
    path = Path("/x") / name
    text = settings_text(SourceSettings(name="n", path=path))
    assert tomllib.loads(text)["sources"][0]["path"] == str(path)
