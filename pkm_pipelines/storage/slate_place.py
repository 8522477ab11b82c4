"""Where the service of a state is found on this host: its socket, its locks, and its log.

All of them lie in the user's runtime folder under a name hashed from the state's URL: the path of a Unix socket is
limited to some hundred bytes (`sun_path` in unix(7)), and URLs are not. The folder is the user's alone (mode 0700),
which is what guards the socket. It is checked, not assumed: under `/tmp` another user could have made it first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pkm_pipelines.model.errors import SettingsError, StateUnavailableError
from pkm_pipelines.storage.location import Location

# Part of the hashed name, so that client and service of different protocols never meet; a newer one takes over by
# fencing the older one. Raise it with every change of what is said on the socket.
PROTOCOL = 2
TOKEN_VARIABLE = "PKM_STATE_TOKEN"  # noqa: S105 (the name of the variable that has it)
MIN_TOKEN_CHARACTERS = 16
MAX_SOCKET_PATH_BYTES = 103  # macOS has 104 with the closing NUL, Linux 108
_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class ServicePlace:
    """The files of one state's service on this host."""

    folder: Path
    name: str

    @classmethod
    def of(cls, location: Location, runtime_dir: Path | None = None) -> ServicePlace:
        """The place for a state; raises `SettingsError` if a socket cannot lie in `runtime_dir`."""
        folder = runtime_dir or default_runtime_dir()
        place = cls(folder, hashlib.sha256(_canonical(location).encode()).hexdigest()[:16])
        path = str(place.socket)
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise SettingsError(f"runtime_dir: {folder} is too long for a socket; name a shorter folder")
        if set(path) & set("%#?\n"):
            raise SettingsError(f"runtime_dir: {folder} has a character that no socket address can hold (% # ?)")
        return place

    @property
    def socket(self) -> Path:
        """The Unix socket that the service listens at."""
        return self.folder / f"{self.name}.sock"

    @property
    def service_lock(self) -> Path:
        """Locked by the running service for as long as it lives."""
        return self.folder / f"{self.name}.lock"

    @property
    def start_lock(self) -> Path:
        """Locked by the one client that is starting a service."""
        return self.folder / f"{self.name}.start"

    @property
    def log(self) -> Path:
        """What the service has to say."""
        return self.folder / f"{self.name}.log"

    @property
    def address(self) -> str:
        """The socket as an Arrow Flight address."""
        return f"grpc+unix://{quote(str(self.socket))}"

    def prepare(self) -> None:
        """Make the folder if absent; raises `StateUnavailableError` unless it is this user's alone."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.lstat()
        except OSError as error:
            raise StateUnavailableError(f"{self.folder}: no place for the state's socket: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise StateUnavailableError(
                f"{self.folder}: must be a folder that belongs to you, and is not; remove it or set runtime_dir"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise StateUnavailableError(f"{self.folder}: other users can reach the state's socket; chmod 700 it")

    def answers(self) -> bool:
        """Whether something accepts connections on the socket right now."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except BlockingIOError:  # its backlog is full: there is one, and it is busy
                return True
        return True


def shared_token() -> str:
    """The secret of a service that listens on TCP, from `PKM_STATE_TOKEN`; raises `SettingsError`."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
        raise SettingsError(
            f"{TOKEN_VARIABLE}: must hold the shared secret of the state service, {MIN_TOKEN_CHARACTERS} or more "
            "printable ASCII characters"  # gRPC aborts the process when a header has any other
        )
    return token


def default_runtime_dir() -> Path:
    """`$XDG_RUNTIME_DIR/pkm` (XDG Base Directory Specification), else `/tmp/pkm-<uid>`."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "pkm"
    return Path("/tmp") / f"pkm-{os.getuid()}"  # noqa: S108 (owner and mode are checked by prepare)


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


def _canonical(location: Location) -> str:
    """One text for all ways to write the same place."""
    if location.is_local:
        return f"{PROTOCOL} {location.path.resolve()}"
    return f"{PROTOCOL} {location.s3().endpoint or ''} s3://{location.bucket}/{location.prefix}"
