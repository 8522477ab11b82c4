"""The docs say all that there is: commands, options, settings, make targets and tables."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pkm_pipelines.cli.main import app
from pkm_pipelines.cli.reference import EXAMPLES, commands, main, pages, stale_pages
from pkm_pipelines.model.tables import BY_NAME
from pkm_pipelines.operations.maintenance import OPERATIONS
from pkm_pipelines.settings import (
    EmbedderSettings,
    MaintenanceSettings,
    Settings,
    SourceSettings,
    StateSettings,
    TablesSettings,
)

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SETTINGS = [Settings, SourceSettings, EmbedderSettings, StateSettings, TablesSettings, MaintenanceSettings]
COMMANDS = commands(typer.main.get_command(app))


def test_generated_pages_are_up_to_date() -> None:
    assert stale_pages() == [], "run `make docs`"
    assert main(["--check"]) == 0


def test_the_check_sees_a_stale_page(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pkm_pipelines.cli.reference as reference

    monkeypatch.setattr(reference, "DOCS", work / "docs")
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    page = work / "docs" / "commands.md"
    page.write_text(page.read_text().replace("--watch", "--wotch"))
    assert stale_pages() == [page]
    assert main(["--check"]) == 1
    assert main(["--wrong"]) == 2


def parameters() -> Iterator[tuple[str, Any]]:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            yield name, parameter


def test_every_command_and_option_is_described() -> None:
    page = next(text for path, text in pages().items() if path.name == "commands.md")
    for name, command in COMMANDS.items():
        assert command.help, name
        assert f"## `pkm {name}`" in page
        assert f"`pkm {name.split()[0]}" in README, f"README.md does not mention pkm {name}"
    for name, parameter in parameters():
        assert parameter.help, f"pkm {name} {parameter.opts}"
        section = page.split(f"## `pkm {name}`")[1].split("\n## ")[0]
        for option in parameter.opts:
            shown = option if option.startswith("-") else parameter.metavar.replace("|", r"\|")
            assert f"`{shown}`" in section, f"pkm {name} {option}"


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_valid(name: str) -> None:
    for line in EXAMPLES[name]:
        words = shlex.split(line.split(" < ")[0])
        if name.startswith("table "):
            words.pop(2)  # the table stands between the words of the command
        path = name.split()
        assert words[: 1 + len(path)] == ["pkm", *path]
        COMMANDS[name].make_context(name, words[1 + len(path) :])


def test_the_readme_calls_only_what_exists() -> None:
    for words in re.findall(r"^(?:\$ )?pkm ([a-z]+)|`pkm ([a-z]+)", README, re.MULTILINE):
        assert (words[0] or words[1]) in COMMANDS
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"\bmake ([a-z]+)", README):
        assert target in targets, f"README.md: make {target}"
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        if not link.startswith("docs/images/"):
            assert (ROOT / link).exists(), f"README.md links to {link}"


def test_the_readme_knows_every_table() -> None:
    for name in (*BY_NAME, "vectors.note_embeddings"):
        assert f"`{name}`" in README


@pytest.mark.parametrize("model", SETTINGS)
def test_every_setting_is_described(model: Any) -> None:
    page = next(text for path, text in pages().items() if path.name == "settings.md")
    for name, field in model.model_fields.items():
        assert field.description, name
        assert f"`{name}`" in page or f"`[{name}]`" in page or f"`[[{name}]]`" in page


def test_every_make_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    for target in targets:
        assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE), target


def test_the_page_of_tables_does_what_it_says(work: Path) -> None:
    """Its Python runs as it stands, in a process of its own; its table of operations is whole."""
    page = (ROOT / "docs" / "tables.md").read_text()
    (work / "pkm.toml").write_text(f'runtime_dir = "{work}/run"\n[state_service]\nidle_seconds = 5\n')
    for code in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        done = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert {line.split()[0] for line in done.stdout.splitlines()} >= {"INSERT", "UPDATE_AFTER", "DELETE"}
    assert re.findall(r"^\| `([a-z]+)` \|", page.split("## Maintenance")[1], re.MULTILINE) == list(OPERATIONS)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link
