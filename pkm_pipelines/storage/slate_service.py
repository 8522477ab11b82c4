"""The state service: the one process that has a state database open, and answers for it over Arrow Flight.

    python -m pkm_pipelines.storage.slate_service --url URL [--listen grpc+tcp://0.0.0.0:PORT]

Clients of a host start it themselves (`slate_client.py`). It listens on a Unix socket in the user's runtime folder,
holds a file lock there for life, and goes when nobody has asked for `--idle-seconds`. With `--listen` it serves
other hosts over TCP until it is told to stop, and wants a secret in `PKM_STATE_TOKEN`; it speaks plain text, so put
it on a private network or behind a proxy that does TLS.

It is made to be killed: what it has answered is durable, and whatever goes wrong with the database it ends, so that
clients ask the next service. Imports are few, because a waiting user pays for them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pyarrow as pa
from pyarrow import flight

from pkm_pipelines.model.errors import PkmError, StateUnavailableError
from pkm_pipelines.storage import slate_maintain
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.runtime_dir import hold
from pkm_pipelines.storage.slate import Database, DatabaseError
from pkm_pipelines.storage.slate_leases import Holder, process_start
from pkm_pipelines.storage.slate_place import PROTOCOL, ServicePlace, shared_token
from pkm_pipelines.storage.slate_wire import (
    MAX_KEYS,
    MAX_REQUEST_BYTES,
    ROWS,
    Message,
    Request,
    check_key,
    decode_writes,
    parse_message,
)

# How long to wait for the predecessor to close the database.
PREDECESSOR_SECONDS = 20.0
KEYS_AT_ONCE = 256
READERS_SECONDS, CLOSE_SECONDS = 2.0, 5.0
HOUSEKEEPING_SECONDS = 5.0
WATCH_SECONDS = 0.25
EXIT_FAILED, EXIT_LOST = 4, 3

T = TypeVar("T")
log = logging.getLogger("pkm.state")


class Activity:
    """Who is being answered, and since when nobody: decides when the service may go, and lets no one in after."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._running = 0
        self._last = time.monotonic()
        self._closed = False

    @contextlib.contextmanager
    def request(self) -> Generator[None]:
        """Count one request while it is answered; refuses it if the service is on its way out."""
        with self._mutex:
            if self._closed:
                raise flight.FlightUnavailableError("the state service is closing; ask the next one")
            self._running += 1
        try:
            yield
        finally:
            with self._mutex:
                self._running -= 1
                self._last = time.monotonic()

    def close(self, *, if_idle_for: float | None = None) -> bool:
        """Let nobody in any more; with `if_idle_for`, only if nobody has asked for so many seconds."""
        with self._mutex:
            idle = self._running == 0 and time.monotonic() - self._last >= (if_idle_for or 0)
            self._closed = self._closed or if_idle_for is None or idle
            return self._closed


class TokenMiddleware(flight.ServerMiddlewareFactory):  # pyright: ignore[reportUntypedBaseClass] (no stubs)
    """Refuses calls without the shared secret."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._expected = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        """Compare in constant time; raises `FlightUnauthenticatedError`."""
        given = (headers.get("authorization") or [""])[0].encode()
        if not hmac.compare_digest(given, self._expected):
            raise flight.FlightUnauthenticatedError("the state service wants the token in PKM_STATE_TOKEN")


class Service(flight.FlightServerBase):  # pyright: ignore[reportUntypedBaseClass] (no stubs)
    """Maps Flight calls to the database. Whatever a peer sends is checked before it is used."""

    def __init__(
        self,
        address: str,
        database: Database,
        loop: asyncio.AbstractEventLoop,
        token: str | None,
        location: Location,
    ) -> None:
        self._database = database
        self._loop = loop
        self.activity = Activity()
        self.stop = threading.Event()
        self._actions: dict[str, Callable[[Message], Coroutine[Any, Any, Message]]] = {
            "lsns": lambda m: database.next_lsns(Request.parse(m), _whole(m, "count")),
            "epoch": lambda m: database.begin_epoch(Request.parse(m), _whole(m, "above")),
            "acquire": lambda m: database.acquire(
                Request.parse(m), _text(m, "name"), Holder.parse(m.get("holder")), _number(m, "ttl_seconds")
            ),
            "renew": lambda m: database.renew(Request.parse(m), _text(m, "name"), _whole(m, "token")),
            "release": lambda m: database.release(Request.parse(m), _text(m, "name"), _whole(m, "token")),
            "figures": lambda m: slate_maintain.figures(location),
            "compact": lambda m: slate_maintain.compact(database, location),
            "compaction": lambda m: slate_maintain.compaction(location, _text(m, "id"), _texts(m, "sources")),
            "collect": lambda m: self._collect(location),
            "checkpoint": lambda m: slate_maintain.checkpoint(
                database, location, _text(m, "name"), _number(m, "seconds")
            ),
            "checkpoints": lambda m: slate_maintain.checkpoints(location),
            "drop-checkpoint": lambda m: slate_maintain.drop_checkpoint(location, _text(m, "id")),
            "info": self._info,
            "stop": self._stop,
        }
        # Last, because the first question may come at once.
        super().__init__(address, middleware={} if token is None else {"token": TokenMiddleware(token)})

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> list[bytes]:
        """Answer one action (see `slate_wire`)."""
        with self.activity.request(), self._errors():
            body = action.body
            if body is None or body.size > MAX_REQUEST_BYTES:
                raise ValueError(f"a request has {MAX_REQUEST_BYTES >> 20} MiB at most")
            if action.type == "get":
                key = body.to_pybytes().decode()
                check_key(key)
                value = self._run(self._database.get(key))
                return [] if value is None else [value]
            if action.type == "write":
                writes, message = decode_writes(body)
                lease = message.get("lease")
                held = None if lease is None else (_text(lease, "name"), _whole(lease, "token"))
                answer = self._run(self._database.write(Request.parse(message), writes, held))
            elif action.type in self._actions:
                answer = self._run(self._actions[action.type](parse_message(body.to_pybytes())))
            else:
                raise ValueError(f"there is no action {action.type[:40]!r}")
            return [json.dumps(answer).encode()]

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.GeneratorStream:
        """Stream rows (see `slate_wire`)."""
        with self._errors():
            message = parse_message(ticket.ticket)
            match message:
                case {"scan": str(prefix), "after": None | str() as after, "limit": None | int() as limit}:
                    return flight.GeneratorStream(ROWS, self._scan(prefix, after, limit))
                case {"keys": list(names)} if len(names) <= MAX_KEYS and all(isinstance(name, str) for name in names):
                    for name in names:
                        check_key(name)
                    return flight.GeneratorStream(ROWS, self._get_many(names))
                case _:
                    raise ValueError("a ticket is a scan or a list of keys")

    def _scan(self, prefix: str, after: str | None, limit: int | None) -> Iterator[pa.RecordBatch]:
        with self.activity.request(), self._errors():
            pages = self._database.scan(prefix, after, limit)
            while (page := self._run(anext(pages, None))) is not None:
                yield _rows([row.key for row in page], [row.value for row in page])

    def _get_many(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        with self.activity.request(), self._errors():
            for start in range(0, len(names), KEYS_AT_ONCE):
                found = self._run(self._database.get_many(names[start : start + KEYS_AT_ONCE]))
                yield _rows([key.encode() for key, _ in found], [value for _, value in found])

    async def _info(self, message: Message) -> Message:
        return {"protocol": PROTOCOL, "pid": os.getpid(), "epoch": self._database.epoch.number}

    async def _collect(self, location: Location) -> Message:
        await slate_maintain.collect(location)
        return {}

    async def _stop(self, message: Message) -> Message:
        self.stop.set()
        return {"pid": os.getpid(), "started": process_start(os.getpid())}

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @contextlib.contextmanager
    def _errors(self) -> Generator[None]:
        """Tell the client what it did wrong; end the service when the database is not ours any more."""
        try:
            yield
        except flight.FlightError:
            raise
        except (ValueError, TypeError, PkmError) as error:
            raise flight.FlightServerError(str(error)) from None
        except DatabaseError as error:
            log.exception("the database failed")
            self.stop.set()
            raise flight.FlightUnavailableError("the state service lost its database") from error


def _rows(names: list[bytes], values: list[bytes]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(names, pa.binary()).cast(pa.string()), pa.array(values, pa.binary())], schema=ROWS)


def _text(message: Any, field: str) -> str:
    value = message.get(field) if isinstance(message, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{field}: must be a text")
    return value


def _texts(message: Message, field: str) -> list[str]:
    value = message.get(field)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{field}: must be a list of texts")
    return value


def _number(message: Message, field: str) -> float:
    value = message.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field}: must be a number")
    return float(value)


def _whole(message: Any, field: str) -> int:
    value = message.get(field) if isinstance(message, dict) else None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field}: must be a whole number")
    return value


def serve(arguments: argparse.Namespace, tell: Callable[[Message], None]) -> int:
    """Serve until idle, stopped, or the database is lost; the exit code. `tell` hears when it is ready."""
    location, place = Location(arguments.url), ServicePlace.of(Location(arguments.url), arguments.runtime_dir)
    if arguments.protocol not in (None, PROTOCOL):
        raise StateUnavailableError(
            f"{location.url}: the project was updated while this process ran (its state protocol is "
            f"{arguments.protocol}, the one installed now {PROTOCOL}); start it again"
        )
    token = shared_token() if arguments.listen else None
    place.prepare()
    with hold(place.service_lock, PREDECESSOR_SECONDS, unless=place.answers) as held:
        if not held and place.answers() and not arguments.listen:
            log.info("%s is served by another process already", location.url)
            tell({"ready": True})
            return 0
        if not held:
            raise StateUnavailableError(
                f"{location.url}: another state service of this host has the state and does not answer at "
                f"{place.socket}; if it serves TCP, set state_service.service, else end it: it holds "
                f"{place.service_lock}"
            )
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="database", daemon=True).start()
        database = asyncio.run_coroutine_threadsafe(Database.open(location, arguments.flush_ms), loop).result()
        place.socket.unlink(missing_ok=True)
        service = Service(arguments.listen or place.address, database, loop, token, location)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop.set())
        log.info("serving %s, epoch %d", location.url, database.epoch.number)
        tell({"ready": True, "port": service.port})
        idle_seconds = None if arguments.listen else arguments.idle_seconds
        lost = _watch(service, database, loop, idle_seconds, location, _identity(location))
        # From here on nobody gets in. The socket goes first and the lock last: clients that come now wait for the lock.
        service.activity.close()
        place.socket.unlink(missing_ok=True)
        if lost:
            log.error("the database is lost (%s); another service may have opened it", lost)
            return EXIT_LOST
        # Neither a client that does not read its stream nor a slow bucket may keep the successor waiting.
        closing = threading.Thread(target=service.shutdown, daemon=True)
        closing.start()
        closing.join(READERS_SECONDS)
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(database.close(), loop).result(CLOSE_SECONDS)
        log.info("closed")
        return 0


def _identity(location: Location) -> tuple[int, int] | None:
    """Which folder it is that lies at a local location; None where there is none, or on S3."""
    if not location.is_local:
        return None
    try:
        found = location.path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _watch(
    service: Service,
    database: Database,
    loop: asyncio.AbstractEventLoop,
    idle_seconds: float | None,
    location: Location,
    folder: tuple[int, int] | None,
) -> str | None:
    """Wait for a reason to go; answers why the database was lost, or None for a reason of ours."""
    next_housekeeping = time.monotonic() + HOUSEKEEPING_SECONDS
    housekeeping: Future[None] | None = None
    while not service.stop.wait(WATCH_SECONDS):
        if database.lost:
            break
        if _identity(location) != folder:
            # Who deletes a lakehouse and makes a new one at its place must not inherit what is only remembered.
            return f"its folder {location.path} was deleted or replaced"
        if idle_seconds is not None and service.activity.close(if_idle_for=idle_seconds):
            break
        if housekeeping is not None and housekeeping.done():
            if error := housekeeping.exception():
                log.error("housekeeping failed and is tried again", exc_info=error)
            housekeeping = None
        if housekeeping is None and time.monotonic() >= next_housekeeping:
            housekeeping = asyncio.run_coroutine_threadsafe(database.keep_house(), loop)
            next_housekeeping = time.monotonic() + HOUSEKEEPING_SECONDS
    return database.lost


def main() -> NoReturn:
    """Read the arguments and serve. What happened goes to `--ready-fd` as one line of JSON, and to the log."""
    parser = argparse.ArgumentParser(prog="slate_service", description="The state service of one lakehouse.")
    parser.add_argument("--url", required=True, help="the state, a file:// or s3:// URL")
    parser.add_argument("--listen", help="grpc+tcp://HOST:PORT instead of a Unix socket")
    parser.add_argument("--runtime-dir", type=Path, help="folder of socket, locks and log")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="go after so long without a request")
    parser.add_argument("--flush-ms", type=int, default=5, help="how often writes are made durable")
    parser.add_argument("--protocol", type=int, help="what the client that starts the service speaks")
    parser.add_argument("--ready-fd", type=int, help="file descriptor that hears when the service is ready")
    arguments = parser.parse_args()
    os.umask(0o077)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(process)d %(levelname)s %(message)s"
    )

    def tell(message: Message) -> None:
        if arguments.ready_fd is not None:
            with contextlib.suppress(BrokenPipeError):  # the client that started us has gone; others will come
                os.write(arguments.ready_fd, json.dumps(message).encode() + b"\n")
            os.close(arguments.ready_fd)

    try:
        code = serve(arguments, tell)
    except PkmError as error:
        log.error("%s", error)
        tell({"error": type(error).__name__, "message": str(error)})
        code = EXIT_FAILED
    except Exception:
        log.exception("a defect")
        code = EXIT_FAILED
    logging.shutdown()
    os._exit(code)  # without waiting for the threads of gRPC and SlateDB


if __name__ == "__main__":
    main()
