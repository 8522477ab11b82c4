"""Following folders live: which files changed, as soon as they did.

The operating system tells (inotify, FSEvents) through watchfiles; where it cannot, because the watches are used up or
the file system has none, folders are polled. What is told only says where to look: a scan decides what changed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pkm_pipelines.model.errors import SourceError

if TYPE_CHECKING:
    from watchfiles import Change

# File systems of other machines, over which the kernel is told of this machine's changes only.
_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.rclone", "davfs", "fuse.davfs2"))
_POLL_MS = 1000
_STOP_CHECK_MS = 500


def watch(
    paths: Sequence[Path],
    stop: threading.Event,
    debounce_ms: int = 500,
    *,
    ignored: Sequence[Path] = (),
    every_seconds: float | None = None,
) -> Iterator[set[str]]:
    """Yield sets of absolute paths that changed below `paths`, each set at most `debounce_ms` after its first change.

    Hidden files and folders below a path are ignored; a path may itself be one (a repository's `.git`). So is what
    lies below `ignored`. With `every_seconds` an empty set comes as soon as the watch is set up, for what changed
    before, and whenever nothing was told for so long. Ends when `stop` is set. Raises `SourceError` if a path is
    not there, at the start or later on.
    """
    import watchfiles

    roots = [str(path.resolve()) for path in paths]
    for path in paths:
        if not path.is_dir():
            raise SourceError(f"{path}: there is no such folder to watch")

    left_out = [str(path.resolve()) for path in ignored]

    def is_content(_: Change, path: str) -> bool:
        return any(_is_visible(root, path) for root in roots) and not any(_is_below(out, path) for out in left_out)

    told_at = -math.inf
    is_polling = any(_file_system(root) in _REMOTE for root in roots)
    while not stop.is_set():
        try:
            for changes in watchfiles.watch(
                *roots,
                watch_filter=is_content,
                debounce=debounce_ms,
                step=min(50, debounce_ms),
                stop_event=stop,
                rust_timeout=_STOP_CHECK_MS,
                yield_on_timeout=every_seconds is not None,
                force_polling=is_polling or None,
                poll_delay_ms=_POLL_MS,
                ignore_permission_denied=True,
            ):
                if changes or (every_seconds is not None and time.monotonic() - told_at >= every_seconds):
                    told_at = time.monotonic()
                    yield {path for _, path in changes}
        except FileNotFoundError as error:
            raise SourceError(f"a watched folder is gone: {error}") from None
        except OSError as error:
            # inotify ran out of watches (fs.inotify.max_user_watches) or instances, or the file system has none.
            if is_polling:
                raise SourceError(f"{', '.join(roots)}: the folders cannot be watched: {error}") from error
            is_polling = True


def _is_below(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_visible(root: str, path: str) -> bool:
    return _is_below(root, path) and not any(part.startswith(".") for part in path[len(root) :].split("/"))


def _file_system(path: str) -> str:
    """The type of the file system that `path` lies on, where /proc tells; the longest mount point counts (proc(5))."""
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    found = [fields for fields in (line.split(" ") for line in mounts) if len(fields) > 2]
    above = [fields for fields in found if f"{path}/".startswith(_unescape(fields[1]).rstrip("/") + "/")]
    return max(above, key=lambda fields: len(fields[1]), default=["", "", ""])[2]


def _unescape(mount_point: str) -> str:
    """Blanks and backslashes in a mount point are written as octal escapes."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        mount_point = mount_point.replace(code, character)
    return mount_point
