"""Where the service of a state is found on this host: its socket, its locks, and its log.

All of them lie in the user's runtime folder under a name hashed from the state's URL: the path of a Unix socket is
limited to some hundred bytes (`sun_path` in unix(7)), and URLs are not. That the folder is the user's alone is what
guards the socket.
"""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pkm_pipelines.model.errors import SettingsError
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.runtime_dir import default_runtime_dir, make_private

# Part of the hashed name, so that client and service of different protocols never meet; a newer one takes over by
# fencing the older one. Raise it with every change of what is said on the socket.
PROTOCOL = 2
TOKEN_VARIABLE = "PKM_STATE_TOKEN"  # noqa: S105 (the name of the variable that has it)
MIN_TOKEN_CHARACTERS = 16
MAX_SOCKET_PATH_BYTES = 103  # macOS has 104 with the closing NUL, Linux 108


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
        make_private(self.folder)

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


def _canonical(location: Location) -> str:
    """One text for all ways to write the same place."""
    if location.is_local:
        return f"{PROTOCOL} {location.path.resolve()}"
    return f"{PROTOCOL} {location.s3().endpoint or ''} s3://{location.bucket}/{location.prefix}"
