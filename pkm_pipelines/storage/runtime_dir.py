"""The user's runtime folder on this host, and locks between processes in it.

The folder is the user's alone (mode 0700). It is checked, not assumed: under `/tmp` another user could have made it
first. Locks are the kernel's, so they are free when their owner is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Generator
from pathlib import Path

from pkm_pipelines.model.errors import StateUnavailableError

_POLL_SECONDS = 0.005


def default_runtime_dir() -> Path:
    """`$XDG_RUNTIME_DIR/pkm` (XDG Base Directory Specification), else `/tmp/pkm-<uid>`."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "pkm"
    return Path("/tmp") / f"pkm-{os.getuid()}"  # noqa: S108 (owner and mode are checked by make_private)


def make_private(folder: Path) -> None:
    """Make the folder if absent; raises `StateUnavailableError` unless it is this user's alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StateUnavailableError(f"{folder}: no place for the state's socket: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StateUnavailableError(
            f"{folder}: must be a folder that belongs to you, and is not; remove it or set runtime_dir"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise StateUnavailableError(f"{folder}: other users can reach the state's socket; chmod 700 it")


@contextlib.contextmanager
def hold(path: Path, wait_seconds: float, unless: Callable[[], bool] = lambda: False) -> Generator[bool]:
    """Hold an exclusive lock on the file; yields False if others held it for all of `wait_seconds`.

    Waiting ends early when `unless` is true.

    The kernel frees the lock when the process dies. It is unlocked by hand too, because a child forked meanwhile
    has the same open file and would keep it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        held = _lock(descriptor, wait_seconds, unless)
        try:
            yield held
        finally:
            if held:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait_seconds: float, unless: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if unless() or time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True
