"""The state, as everybody but the state service sees it.

`State` finds the service of a state database, starts it if there is none, and asks again when it went away. Every
change is applied exactly once however often it had to be asked for, and is durable when the call returns. Nothing
heavy is imported and nothing is contacted before the first question.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import LeaseHeldError, LeaseLostError, StateUnavailableError, StoreError
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_connection import Channel, Connector
from pkm_pipelines.storage.slate_leases import Holder, process_start

if TYPE_CHECKING:
    from pkm_pipelines.model.records import Mutation
    from pkm_pipelines.settings import StateSettings
    from pkm_pipelines.storage.slate_wire import Message, Write

READ_KEYS = CLEAR_KEYS = 2000
COMPACT_SECONDS, POLL_SECONDS = 300.0, 0.5

log = logging.getLogger(__name__)


@dataclass
class _Session:
    """A numbered row of changes, one at a time (see `slate_wire`)."""

    name: str
    sequence: int = 0


class State:
    """Keys and values that all processes of a lakehouse share. Safe to use from many threads.

    Keys are texts (see `model/keys.py`), values are bytes. Every method raises `StateUnavailableError` when no service
    can be reached or started within a minute, and `StoreError` for a key or value that cannot be stored.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._mutex = threading.Lock()
        self._idle_sessions: list[_Session] = []
        self._session_numbers = itertools.count(1)
        self._client = uuid.uuid4().hex

    @classmethod
    def connect(cls, location: Location, settings: StateSettings, runtime_dir: Path | None = None) -> State:
        """The state at a location. The service is looked for, or started, at the first question.

        `runtime_dir` is where its socket lies, the user's runtime folder by default. Raises `SettingsError`.
        """
        return cls(
            Connector(
                location,
                service=settings.service,
                idle_seconds=settings.idle_seconds,
                flush_ms=settings.flush_ms,
                runtime_dir=runtime_dir,
            )
        )

    def __enter__(self) -> State:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the connection go; the service goes by itself when nobody has asked for a while."""
        self._connector.close()

    # Reads

    def get(self, key: str) -> bytes | None:
        """The value of a key, None if it has none."""
        _check_keys([key])
        return self._connector.call(lambda channel: channel.get(key))

    def get_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The values of many keys; keys without a value are absent."""
        _check_keys(names)
        found: dict[str, bytes] = {}
        for start in range(0, len(names), READ_KEYS):
            ticket = {"keys": list(names[start : start + READ_KEYS])}
            found.update(self._connector.call(lambda channel: list(channel.rows(ticket))))  # noqa: B023 (called at once)
        return found

    def scan(
        self, prefix: str, *, start_after: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Keys that start with `prefix` and their values, in the order of the keys' code points, in bounded memory.

        What is read is one moment of the state, unless the service goes away meanwhile: then the rest is read
        from the next one. `start_after` leaves out keys up to and including it.
        """
        after, left = start_after, limit

        def rest(channel: Channel) -> Iterator[tuple[str, bytes]]:
            nonlocal after, left
            if left == 0:
                return
            for key, value in channel.rows({"scan": prefix, "after": after, "limit": left}):
                after, left = key, None if left is None else left - 1
                yield key, value

        return self._connector.stream(rest)

    # Changes

    def put(self, key: str, value: bytes) -> None:
        """Set a key."""
        from pkm_pipelines.storage.slate_wire import Write

        self._write([Write(key, value)])

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""
        from pkm_pipelines.storage.slate_wire import Write

        self._write([Write(key, None)])

    def cas(self, key: str, expected: bytes | None, new: bytes | None) -> bool:
        """Compare and set: change `key` to `new` if it is `expected` (None: absent); whether it was."""
        from pkm_pipelines.storage.slate_wire import Write

        return self._write([Write(key, new, guarded=True, expected=expected)])

    def apply(self, mutations: Sequence[Mutation], *, lease: Lease | None = None) -> None:
        """Write all of them or none; of two for one key the later counts.

        With a lease, raises `LeaseLostError` and writes nothing if somebody else has it by now.
        """
        from pkm_pipelines.storage.slate_wire import Write

        self._write([Write(mutation.key, mutation.value) for mutation in mutations], lease)

    def clear(self, prefix: str, *, lease: Lease | None = None) -> int:
        """Delete all keys that start with `prefix`, leases excepted, in batches; how many there were."""
        from pkm_pipelines.storage.slate_wire import Write

        count = 0
        found = (key for key, _ in self.scan(prefix) if not key.startswith(keys.LOCK))
        while batch := list(itertools.islice(found, CLEAR_KEYS)):
            self._write([Write(key, None) for key in batch], lease)
            count += len(batch)
        return count

    def next_lsns(self, count: int) -> range:
        """`count` consecutive LSNs that nobody else gets: 64 bits, epoch << 48 | counter, always growing."""
        first = int(self._change("lsns", {"count": count})["first"])
        return range(first, first + count)

    def begin_epoch(self, above: int = 0) -> int:
        """Count LSNs on in a new epoch, for a state that was restored or rebuilt; the epoch.

        It is higher than every epoch claimed at this location, and than `above` (the epoch of the highest LSN that
        the tables hold, say).
        """
        return int(self._change("epoch", {"above": above})["epoch"])

    def acquire(self, name: str, *, ttl_seconds: float, wait_seconds: float = 0) -> Lease:
        """Take the lease called `name`; it ends `ttl_seconds` after its last renewal.

        Use it in a `with` statement, which renews it in the background and gives it back. Raises `LeaseHeldError`,
        naming the holder, if it is not free within `wait_seconds`.
        """
        deadline = time.monotonic() + wait_seconds
        pause = 0.02
        request = {"name": name, "ttl_seconds": ttl_seconds, "holder": vars(Holder.current())}
        while True:
            answer = self._change("acquire", request)
            if "token" in answer:
                return Lease(self, name, int(answer["token"]), ttl_seconds)
            left = deadline - time.monotonic()
            if left <= 0:
                raise LeaseHeldError(
                    f"{name}: {answer['holder']} is writing; it holds the lease for {answer['seconds']:.0f} s more "
                    "unless it renews it; wait for it, or end it"
                )
            time.sleep(min(pause * random.uniform(0.5, 1.5), left))  # noqa: S311 (jitter)
            pause = min(pause * 1.5, 0.5)

    # Maintenance (see `slate_maintain`)

    def figures(self) -> dict[str, int]:
        """What the state takes up: `files`, `bytes`, `tables`, `runs`, `table_bytes`, `checkpoints`."""
        return self._ask("figures")

    def compact(self, *, wait_seconds: float = COMPACT_SECONDS) -> bool:
        """Make one sorted run of everything; False if another compaction was in the way or it took too long.

        It goes on in the background then. Clients are answered meanwhile.
        """
        asked = self._ask("compact")
        deadline = time.monotonic() + wait_seconds
        while asked["id"] is not None:
            answer = self._ask("compaction", {"id": asked["id"], "sources": asked["sources"]})
            if answer["done"]:
                break
            if answer["failed"] or time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def collect(self) -> None:
        """Remove objects that nothing uses any more."""
        self._ask("collect")

    def checkpoint(self, name: str, seconds: float) -> str:
        """Keep the state as it is now readable for so long, whatever is done to it; the checkpoint's id."""
        return str(self._ask("checkpoint", {"name": name, "seconds": seconds})["id"])

    def checkpoints(self) -> list[dict[str, Any]]:
        """The checkpoints: `id`, `name`, `created` and `expires` (seconds since 1970), oldest first."""
        return self._ask("checkpoints")["checkpoints"]

    def drop_checkpoint(self, checkpoint_id: str) -> bool:
        """Let a checkpoint go; whether there was one."""
        return bool(self._ask("drop-checkpoint", {"id": checkpoint_id})["dropped"])

    def _ask(self, action: str, message: Message | None = None) -> Message:
        """Ask for what may be asked for twice."""
        body = json.dumps(message or {}).encode()
        return self._connector.call(lambda channel: channel.ask(action, body))

    # The service

    def info(self) -> dict[str, Any]:
        """`pid` and `protocol` of the service that answers, and the current `epoch`."""
        return self._connector.call(lambda channel: channel.ask("info", b"{}"))

    def stop_service(self) -> None:
        """End this host's service, if there is one, so that the database can be replaced; asking starts it again."""
        process = self._connector.call_running(lambda channel: channel.ask("stop", b"{}"))
        while process is not None and process_start(process["pid"]) == process["started"]:
            time.sleep(0.005)

    @contextlib.contextmanager
    def offline(self) -> Generator[None]:
        """Keep the state closed on this host, so that the database can be replaced (a restore) or copied.

        Whoever asks meanwhile waits. Raises `StateUnavailableError` if it cannot be closed within a minute.
        """
        self.stop_service()
        with self._connector.exclusive():
            yield

    def _write(self, writes: Sequence[Write], lease: Lease | None = None) -> bool:
        from pkm_pipelines.storage.slate_wire import encode_writes

        held = None if lease is None else {"name": lease.name, "token": lease.token}

        def encode(message: Message) -> bytes:
            try:
                return encode_writes(writes, {**message, "lease": held})
            except ValueError as error:
                raise StoreError(str(error)) from None

        answer = self._change("write", encode)
        if answer["lost"] and lease is not None:
            raise LeaseLostError(f"{lease.name}: the lease was taken over by another writer; nothing was written")
        return bool(answer["applied"])

    def _change(self, action: str, body: Message | Callable[[Message], bytes]) -> Message:
        """Ask for a change until it is answered, each time as the same request."""
        with self._session() as session:
            session.sequence += 1
            request = {"session": session.name, "sequence": session.sequence}
            encoded = body(request) if callable(body) else json.dumps({**body, **request}).encode()
            return self._connector.call(lambda channel: channel.ask(action, encoded))

    @contextlib.contextmanager
    def _session(self) -> Generator[_Session]:
        with self._mutex:
            session = self._idle_sessions.pop() if self._idle_sessions else None
        session = session or _Session(f"{self._client}x{next(self._session_numbers)}")
        try:
            yield session
        finally:
            with self._mutex:
                self._idle_sessions.append(session)


class Lease:
    """The right to write something, until it expires or is given back. Made by `State.acquire`.

    `token` grows with every grant; a write that names an older one is refused.
    """

    def __init__(self, state: State, name: str, token: int, ttl_seconds: float) -> None:
        self.name = name
        self.token = token
        self._state = state
        self._ttl_seconds = ttl_seconds
        self._lost = False
        self._released = threading.Event()
        self._renewer: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self._renewer = threading.Thread(target=self._keep, name=f"lease {self.name}", daemon=True)
        self._renewer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.release()
        except StateUnavailableError as problem:  # it expires by itself; what was done under it stands
            log.warning("%s: the lease could not be given back: %s", self.name, problem)

    def renew(self) -> None:
        """Begin a new term. Raises `LeaseLostError` if somebody else has the lease by now."""
        if not self._lost:
            answer = self._state._change("renew", {"name": self.name, "token": self.token})  # pyright: ignore[reportPrivateUsage] (one room)
            self._lost = not answer["held"]
        if self._lost:
            raise LeaseLostError(f"{self.name}: the lease expired and was taken over by another writer; start again")

    def check(self) -> None:
        """Raise `LeaseLostError` unless the lease is still held.

        It asks the service for a durable renewal: only that also finds out a service that was itself replaced.
        """
        self.renew()

    def release(self) -> None:
        """Give the lease back; does nothing if it is lost."""
        self._released.set()
        if self._renewer is not None and self._renewer is not threading.current_thread():
            self._renewer.join()
        if not self._lost:
            self._state._change("release", {"name": self.name, "token": self.token})  # pyright: ignore[reportPrivateUsage] (one room)
            self._lost = True

    def _keep(self) -> None:
        while not self._released.wait(self._ttl_seconds / 3):
            try:
                self.renew()
            except LeaseLostError:
                return  # whoever works under the lease hears it from check() or apply()
            except StoreError as error:
                log.warning("%s: the lease could not be renewed: %s", self.name, error)


def _check_keys(names: Sequence[str]) -> None:
    from pkm_pipelines.storage.slate_wire import check_key

    try:
        for name in names:
            check_key(name)
    except ValueError as error:
        raise StoreError(str(error)) from None
