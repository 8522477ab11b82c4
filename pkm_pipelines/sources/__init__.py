"""Where notes come from. A source yields changes in bounded memory, and the state writes that say they were seen."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pkm_pipelines.settings import SourceSettings
from pkm_pipelines.sources.base import Source, StateReader

__all__ = ["Source", "StateReader", "detect_flavour", "open_source"]


def open_source(settings: SourceSettings, path: Path, batch_notes: int, batch_bytes: int) -> Source:
    """The source of `settings` at the absolute `path`; nothing is read yet.

    A batch of it holds at most `batch_notes` changes and `batch_bytes` of content.
    """
    if settings.kind == "git":
        from pkm_pipelines.sources.git import GitSource

        return GitSource(settings, path, batch_notes=batch_notes, batch_bytes=batch_bytes)
    from pkm_pipelines.sources.folder import FolderSource

    return FolderSource(settings, path, batch_notes=batch_notes, batch_bytes=batch_bytes)


def detect_flavour(source: Source) -> Literal["obsidian", "logseq"]:
    """Which application's Markdown a source holds, from its top-level folders.

    Logseq keeps its settings in `logseq/` and its notes in `pages/` and `journals/`; Obsidian keeps its own in
    `.obsidian/`, which counts more than the names of folders of notes. Raises `SourceError` if it cannot be read.
    """
    folders = source.folders()
    if "logseq" in folders or ({"pages", "journals"} <= folders and ".obsidian" not in folders):
        return "logseq"
    return "obsidian"
