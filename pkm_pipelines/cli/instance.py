"""The Dagster instance of a lakehouse: `.pkm/dagster`, its configuration copied from the project's template.

`pkm run` and `pkm dev` use the same one, so that a run from the command line has its page in the UI.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

from pkm_pipelines.model.errors import SettingsError
from pkm_pipelines.settings import Settings, find_file

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "resources" / "dagster.yaml"
WORKSPACE = ROOT / "workspace.yaml"
LOG_DAYS = 30
# Stands on the first line of a copy and says what the rest was, so that an edited copy is known as such.
_MARK = "# copy of resources/dagster.yaml, sha256 "
# Folders that this process has put into `DAGSTER_HOME` itself: another lakehouse opened after gets its own.
_ours: set[str] = set()


def prepare_instance(settings: Settings) -> Path:
    """Make the instance folder and point `DAGSTER_HOME` to it; returns the folder.

    A `DAGSTER_HOME` that the caller has set already is used as it is: a deployment brings its own instance.
    `PKM_CONFIG` is set too where a settings file was found, so that every process that Dagster starts reads
    the same settings whatever its working folder. Raises `SettingsError` if the folder cannot be written.
    """
    if (file := find_file()) is not None:
        os.environ["PKM_CONFIG"] = str(file.resolve())
    given = os.environ.get("DAGSTER_HOME")
    if given and given not in _ours:
        return Path(given)
    folder = settings.data_dir / "dagster"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refresh(folder / "dagster.yaml")
    except OSError as error:
        raise SettingsError(
            f"{folder}: cannot be written ({error.strerror}); set `home` to a folder of yours"
        ) from None
    os.environ["DAGSTER_HOME"] = str(folder)
    _ours.add(str(folder))
    return folder


def prune_logs(folder: Path, days: int = LOG_DAYS) -> int:
    """Remove what runs printed more than `days` ago; returns of how many runs. Dagster itself keeps it for ever.

    The runs, their events and materialisations stay.
    """
    limit = time.time() - days * 86400
    # Dagster's local compute log manager: storage/<run id>/compute_logs/….
    old = [logs.parent for logs in folder.glob("storage/*/compute_logs") if logs.stat().st_mtime < limit]
    for run in old:
        shutil.rmtree(run / "compute_logs", ignore_errors=True)
    return len(old)


def _refresh(copy: Path) -> None:
    """Write the template's present text unless the copy was edited by hand."""
    text = TEMPLATE.read_text(encoding="utf-8")
    wanted = f"{_MARK}{_digest(text)}\n{text}"
    if copy.exists():
        present = copy.read_text(encoding="utf-8")
        first, _, rest = present.partition("\n")
        edited = first != f"{_MARK}{_digest(rest)}"
        if edited or present == wanted:
            return
    # Another `pkm` may start at the same moment: it sees the old file or the new one, never half of it.
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}")
    temporary.write_text(wanted, encoding="utf-8")
    temporary.replace(copy)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
