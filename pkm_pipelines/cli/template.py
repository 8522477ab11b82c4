"""The starting `pkm.toml`: one source, and every other setting as a comment with its default."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

from pydantic.fields import FieldInfo

from pkm_pipelines.model.errors import SettingsError
from pkm_pipelines.settings import MaintenanceSettings, Settings, SourceSettings, TablesSettings, load

# Settings whose default depends on the folder, or that have a table of their own.
_LEFT_OUT = {"home", "sources", "warehouse", "catalog", "vectors", "state", "objects", "embedder", "state_service"}
# Settings that are tables of their own.
_SECTIONS = {"tables": TablesSettings, "maintenance": MaintenanceSettings}


def detect_source(path: Path) -> SourceSettings:
    """What lies at `path`: a git repository (bare or not) or a folder of notes, named after the folder.

    Raises `SettingsError` if there is no folder.
    """
    folder = path.expanduser().resolve()
    if not folder.is_dir():
        raise SettingsError(f"{path}: no such folder")
    bare = all((folder / name).exists() for name in ("HEAD", "objects", "refs"))
    kind = "git" if bare or (folder / ".git").exists() else "folder"
    return SourceSettings(name=source_name(folder), kind=kind, path=folder)


def source_name(folder: Path) -> str:
    """A valid source name from a folder's: `Mein Gedächtnis` → `mein-gedachtnis`."""
    plain = unicodedata.normalize("NFKD", folder.name.removesuffix(".git")).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:63] or "notes"


def write_settings(file: Path, source: SourceSettings, *, force: bool = False, extra: str = "") -> Path:
    """Write a starting settings file for `source`; returns its path.

    `extra` is TOML that stands before the source. Raises `SettingsError` if the file exists (unless `force`) or
    cannot be written.
    """
    file = file.absolute()
    if file.exists() and not force:
        raise SettingsError(f"{file} exists; --force writes over it")
    inside = source.path.is_relative_to(file.parent.resolve())
    path = source.path.relative_to(file.parent.resolve()) if inside else source.path
    text = settings_text(source.model_copy(update={"path": path}), extra)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        data = file.parent / ".pkm"
        data.mkdir(exist_ok=True)
        # A folder of data in somebody's repository should not be committed by accident.
        (data / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{file}: cannot be written ({error.strerror})") from None
    load(file)
    return file


def settings_text(source: SourceSettings, extra: str = "") -> str:
    """The text of a starting settings file."""
    lines = [
        "# Settings of PKM Pipelines; docs/settings.md describes all of them. A variable PKM_… of the environment goes",
        "# before this file: PKM_BATCH_NOTES, PKM_EMBEDDER__MODEL. Data lies in .pkm/ beside this file unless the URLs",
        "# below say otherwise; for s3:// the standard AWS_* variables hold the credentials.",
        "",
        '# warehouse = "s3://bucket/warehouse"',
        '# catalog = "postgresql://user@host/database"',
        '# vectors = "s3://bucket/vectors"',
        '# state = "s3://bucket/state"',
        '# objects = "s3://bucket/objects"',
        "",
    ]
    lines += [
        _setting_line(name, field)
        for name, field in Settings.model_fields.items()
        if name not in _LEFT_OUT and name not in _SECTIONS
    ]
    lines += [
        "",
        *([extra.rstrip(), ""] if extra else []),
        "[[sources]]",
        f"name = {_quoted(source.name)}",
        *_kind_lines(source),
        f"path = {_quoted(str(source.path))}",
        '# include = ["**/*.md"]',
        '# exclude = ["Templates/**"]',
        "",
        "# [embedder]",
        '# model = "all-MiniLM-L6-v2"  # a sentence-transformers model by name or folder, or "none"',
        "",
    ]
    for section, settings in _SECTIONS.items():
        lines += [f"# [{section}]", *(_setting_line(*one) for one in settings.model_fields.items()), ""]
    return "\n".join(lines)


def _setting_line(name: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return f"# {name} = {_shown(value)}  # {field.description}"


def _shown(value: object) -> str:
    """A default as TOML says it; numbers and dates are written as Python does."""
    if value is None:
        return '"…"'
    if isinstance(value, str):
        return _quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind_lines(source: SourceSettings) -> list[str]:
    if source.kind == "git":
        return [
            "# git: what is committed, with authors and all history. folder: the files as they are, committed or not.",
            'kind = "git"',
            '# branch = "main"',
            '# subfolder = "vault"',
        ]
    return ['kind = "folder"']


def _quoted(value: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's (TOML 1.0, String)."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
