"""How a client reaches the state service: find it, start it if there is none, ask again when it went away."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import pkm_pipelines
from pkm_pipelines.model import errors
from pkm_pipelines.model.errors import SettingsError, StateUnavailableError, StoreError
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.runtime_dir import hold
from pkm_pipelines.storage.slate_place import PROTOCOL, TOKEN_VARIABLE, ServicePlace, shared_token

if TYPE_CHECKING:
    from pyarrow import flight

    from pkm_pipelines.storage.slate_wire import Message

PATIENCE_SECONDS = 60.0
CALL_SECONDS = 30.0
STREAM_SECONDS = 300.0
MAX_LOG_BYTES = 1 << 20
_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.01, 0.5

# One channel a client: gRPC would else hand out a shared one that still backs off from the service that is gone.
# And no detour: gRPC would else send a TCP address of the private network to the `http_proxy`.
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.enable_http_proxy", 0),
]

T = TypeVar("T")


@dataclass(frozen=True)
class Channel:
    """A connection, for one call (see `slate_wire` for what is said)."""

    client: flight.FlightClient
    options: flight.FlightCallOptions

    def get(self, key: str) -> bytes | None:
        """The value of a key."""
        from pyarrow import flight

        results = list(self.client.do_action(flight.Action("get", key.encode()), self.options))
        return results[0].body.to_pybytes() if results else None

    def ask(self, action: str, body: bytes) -> Message:
        """The answer to any other action."""
        from pyarrow import flight

        (result,) = self.client.do_action(flight.Action(action, body), self.options)
        return json.loads(result.body.to_pybytes())

    def rows(self, ticket: Message) -> Iterator[tuple[str, bytes]]:
        """Keys and values, as they come in."""
        from pyarrow import flight

        reader = self.client.do_get(flight.Ticket(json.dumps(ticket).encode()), self.options)
        try:
            for chunk in reader:
                names, values = chunk.data.columns
                yield from zip(names.to_pylist(), values.to_pylist(), strict=True)
        finally:
            reader.cancel()


class Connector:
    """The way to one state's service. Safe to use from many threads; made anew in each process."""

    def __init__(
        self,
        location: Location,
        *,
        service: str | None = None,
        idle_seconds: float = 60.0,
        flush_ms: int = 5,
        runtime_dir: Path | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`service` is the address of a shared service; by default the one of this host is used, and started.

        Raises `SettingsError` for an address without a token, an S3 location without credentials, or a
        `runtime_dir` that no socket can lie in.
        """
        self._location = location
        self._service = service
        self._place = None if service else ServicePlace.of(location, runtime_dir)
        self._arguments = [f"--protocol={PROTOCOL}", f"--idle-seconds={idle_seconds}", f"--flush-ms={flush_ms}"]
        if runtime_dir is not None:
            self._arguments.append(f"--runtime-dir={runtime_dir}")
        self._token = _shared_token(service) if service else None
        self._patience_seconds = patience_seconds
        self._mutex = threading.Lock()
        self._client: flight.FlightClient | None = None
        self._closed = False
        self._pid = os.getpid()

    def close(self) -> None:
        """Let the connection go."""
        with self._mutex:
            self._client, self._closed = None, True

    def call(self, ask: Callable[[Channel], T]) -> T:
        """The answer of `ask`, asked again while the service comes and goes.

        Raises `StateUnavailableError` when patience is over, `StoreError` if the service refuses the request.
        """
        waiting = Patience(self._patience_seconds)
        while True:
            client = self._connected()
            try:
                return ask(Channel(client, self._options(CALL_SECONDS)))
            except _gone() as error:
                self._lost(client, error, waiting)
            except _refused() as error:
                raise self._refusal(error) from None

    def stream(self, rows: Callable[[Channel], Iterator[T]]) -> Iterator[T]:
        """What `rows` yields; called again, to go on from where it stopped, when the service went away meanwhile."""
        waiting = Patience(self._patience_seconds)
        while True:
            client = self._connected()
            # Not in the `except`: a stream that was left unread is closed when Python ends and cannot import.
            gone, refused = _gone(), _refused()
            try:
                for row in rows(Channel(client, self._options(STREAM_SECONDS))):
                    yield row
                    waiting.reset()
            except gone as error:
                self._lost(client, error, waiting)
            except refused as error:
                raise self._refusal(error) from None
            else:
                return

    def call_running(self, ask: Callable[[Channel], T]) -> T | None:
        """The answer of the service of this host, asked once; None if there is none or it goes away meanwhile."""
        if self._place is None:
            raise StoreError(f"{self._service}: a shared state service is stopped on its own host")
        if not self._place.answers():
            return None
        client = self._connected()
        try:
            return ask(Channel(client, self._options(CALL_SECONDS)))
        except _gone():
            return None
        finally:
            self._drop(client)

    @contextlib.contextmanager
    def exclusive(self) -> Generator[None]:
        """Hold both locks, so that no service of this host has the database open."""
        place = self._place
        if place is None:
            raise StoreError(f"{self._service}: a shared state service is stopped on its own host")
        place.prepare()
        with (
            hold(place.start_lock, self._patience_seconds) as no_start,
            hold(place.service_lock, self._patience_seconds if no_start else 0) as no_service,
        ):
            if not (no_start and no_service):
                raise StateUnavailableError(f"{self._location.url}: the state is in use and cannot be closed now")
            yield

    def _connected(self) -> flight.FlightClient:
        if os.getpid() != self._pid:
            raise StateUnavailableError("the state was opened before a fork; open it again in the child process")
        with self._mutex:
            if self._closed:
                raise StateUnavailableError(f"{self._location.url}: the state was closed")
            if self._client is None:
                address = self._service or self._find()
                from pyarrow import flight

                self._client = flight.FlightClient(address, generic_options=_CHANNEL)
            return self._client

    def _drop(self, client: flight.FlightClient) -> None:
        with self._mutex:
            if self._client is client:
                self._client = None

    def _lost(self, client: flight.FlightClient, error: Exception, waiting: Patience) -> None:
        self._drop(client)
        if not waiting.pause():
            where = self._service or (self._place and f"log: {self._place.log}")
            raise StateUnavailableError(
                f"{self._location.url}: the state service has not answered for {self._patience_seconds:.0f} s "
                f"({where}); if another host serves this state, set state_service.service to its address"
            ) from error

    def _options(self, seconds: float) -> flight.FlightCallOptions:
        from pyarrow import flight

        headers = [] if self._token is None else [(b"authorization", f"Bearer {self._token}".encode())]
        return flight.FlightCallOptions(timeout=seconds, headers=headers)

    def _refusal(self, error: Exception) -> StoreError:
        from pyarrow import flight

        if isinstance(error, flight.FlightUnauthenticatedError):
            return StateUnavailableError(
                f"{self._service}: the state service refused the token; set {TOKEN_VARIABLE} to what the service has"
            )
        return StoreError(str(error).partition(". Detail: ")[0])

    def _find(self) -> str:
        """The address of this host's service, which accepts connections now."""
        place = self._place
        assert place is not None
        place.prepare()
        waiting = Patience(self._patience_seconds)
        while not place.answers():
            with hold(place.start_lock, self._patience_seconds) as held:
                if not held:
                    raise StateUnavailableError(
                        f"{self._location.url}: another process has been starting or replacing the state for "
                        f"{self._patience_seconds:.0f} s; see {place.log}"
                    )
                if not place.answers() and not (self._start(place) and place.answers()) and not waiting.pause():
                    raise StateUnavailableError(
                        f"{self._location.url}: the state service ended right after it started, again and again for "
                        f"{self._patience_seconds:.0f} s; see {place.log}"
                    )
        return place.address

    def _start(self, place: ServicePlace) -> bool:
        """Start the service in a session of its own, and wait until it accepts connections.

        False if it was killed meanwhile; raises if it could not start.
        """
        readable, writable = os.pipe()
        try:
            with _open_log(place.log) as log:
                process = subprocess.Popen(  # noqa: S603 (our own module, and arguments that are no shell text)
                    [
                        sys.executable,
                        *("-m", "pkm_pipelines.storage.slate_service", "--url", self._location.url),
                        *self._arguments,
                        f"--ready-fd={writable}",
                    ],
                    cwd=Path(pkm_pipelines.__file__).parents[1],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[writable],
                )
            os.close(writable)
            writable = -1
            threading.Thread(target=process.wait, name="state service", daemon=True).start()  # leaves no zombie
            import pyarrow.flight  # noqa: F401  # pyright: ignore[reportUnusedImport] (while the service does the same)

            return self._await_ready(readable, place, process)
        finally:
            os.close(readable)
            if writable >= 0:
                os.close(writable)

    def _await_ready(self, readable: int, place: ServicePlace, process: subprocess.Popen[bytes]) -> bool:
        line = b""
        deadline = time.monotonic() + self._patience_seconds
        while not line.endswith(b"\n"):
            if not select.select([readable], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise StateUnavailableError(
                    f"{self._location.url}: the state service (process {process.pid}) is not ready after "
                    f"{self._patience_seconds:.0f} s; see {place.log}"
                )
            part = os.read(readable, 65536)
            if not part:
                if process.wait() < 0:  # by a signal
                    return False
                raise StateUnavailableError(
                    f"{self._location.url}: the state service ended while it started; see {place.log}"
                )
            line += part
        answer = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"], StateUnavailableError)
            raise kind(answer["message"])
        return True


class Patience:
    """How long to go on asking: pauses grow, with jitter so that many clients do not ask in step."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """There was progress: begin anew."""
        self._deadline = time.monotonic() + self._seconds
        self._pause_seconds = _PAUSE_SECONDS

    def pause(self) -> bool:
        """Wait a little; False when the time is over."""
        if time.monotonic() >= self._deadline:
            return False
        time.sleep(self._pause_seconds * random.uniform(0.5, 1.5))  # noqa: S311 (jitter)
        self._pause_seconds = min(self._pause_seconds * 2, _MAX_PAUSE_SECONDS)
        return True


def _gone() -> tuple[type[Exception], ...]:
    """What a call raises when the service went away or does not answer: the outcome is unknown."""
    from pyarrow import flight

    return (
        flight.FlightUnavailableError,
        flight.FlightTimedOutError,
        flight.FlightCancelledError,
        flight.FlightInternalError,
    )


def _refused() -> tuple[type[Exception], ...]:
    from pyarrow import flight

    return (flight.FlightError,)


def _shared_token(service: str) -> str:
    if not service.startswith(("grpc+tcp://", "grpc+tls://")):
        raise SettingsError("state_service.service: must be a grpc+tcp://host:port or grpc+tls://host:port address")
    return shared_token()


def _open_log(path: Path) -> BinaryIO:
    """The service's log, opened to append; begun anew when it has grown large."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    log = os.fdopen(descriptor, "ab", buffering=0)
    if log.tell() > MAX_LOG_BYTES:
        log.truncate(0)
    return log
