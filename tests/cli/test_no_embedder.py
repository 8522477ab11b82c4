"""`pkm run` without an embedder: every table but the vectors, and nothing to do the second time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_run_without_an_embedder(work: Path) -> None:
    (work / "notes").mkdir()
    (work / "notes" / "Bread.md").write_text("# Bread\n\nOf [[Flour]].\n")
    settings = work / "pkm.toml"
    settings.write_text('[[sources]]\nname = "notes"\npath = "notes"\n[embedder]\nmodel = "none"\n')
    environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
    command = [sys.executable, "-m", "pkm_pipelines.cli.main", "--config", str(settings), "run"]
    first = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert first.returncode == 0, first.stderr
    assert "no embedder is set" in first.stderr
    assert "gold.note_metrics" in first.stdout and "vectors" not in first.stdout
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert again.returncode == 0 and "Nothing has changed" in again.stderr
