"""Reading a vault for tests: its paths as Obsidian sees them, and its notes parsed."""

from __future__ import annotations

import os
from pathlib import Path

from pkm_pipelines.knowledge.markdown import parse_note
from pkm_pipelines.knowledge.note import ParsedNote


def list_files(root: Path) -> list[str]:
    """The paths of all files, '/' between folders; folders and files that begin with '.' are no content."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def read_note(root: Path, path: str) -> ParsedNote:
    """The note at `path`, parsed; line ends as they are."""
    return parse_note((root / path).read_bytes().decode(), path)
