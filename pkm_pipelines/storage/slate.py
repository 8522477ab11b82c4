"""The state database: SlateDB as one writer uses it. Runs inside the state service only.

SlateDB (https://slatedb.io) is a key-value store that lies in an object store. It has one writer: opening it fences
whoever had it open. This module is that writer. All changes pass one lock, so that a change sees every one before it;
they become durable in groups, a flush tick apart, and are answered only then. Reads see durable data only.

Exactly-once: the answer of a change is stored in the same atomic batch as the change, under
`meta:request:<session>`. A session is a client's, has one request in flight, and keeps its last answer only.

A write whose outcome is unknown (the store failed, or another writer took over) leaves nothing to repair here: the
service drops its clients and ends, and they ask the next one again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import cast

from slatedb import uniffi as slatedb

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage import slate_epochs, slate_maintain
from pkm_pipelines.storage.endpoint import probe
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_epochs import COUNTER_BITS, Epoch
from pkm_pipelines.storage.slate_leases import MAX_TEXT, MAX_TTL_SECONDS, Holder, LeaseRecord, Terms
from pkm_pipelines.storage.slate_wire import Message, Request, Write

PAGE_BYTES = 1 << 20
FIRST_PAGE_ROWS, MAX_PAGE_ROWS = 16, 1000
MAX_LSNS = 1 << 32

# The last answers of sessions are kept for this long after their last request; a client gives up long before.
ANSWER_SECONDS = 3600.0
# With more sessions than this, those that have been silent for RETRY_SECONDS go too.
MAX_ANSWERS = 10_000
RETRY_SECONDS = 300.0

# Opening replays the log of all writes since the memtable was last flushed, one small object each.
FLUSH_AFTER_WRITES = 500
FLUSH_AT_CLOSE_AFTER_WRITES = 50
CLOSE_FLUSH_SECONDS = 2.0
COLLECT_SECONDS = 600.0

SETTINGS = {
    "object_store_max_retries": "4",
    "max_unflushed_bytes": str(128 << 20),
    "garbage_collector_options.wal_fence_options.dry_run": "false",  # else an empty object stays for each opening
    "garbage_collector_options.object_store_max_retries": "4",
    "compactor_options.object_store_max_retries": "4",
}

Batch = dict[bytes, bytes | None]

# Typed by hand: the generated bindings build the class at run time.
DatabaseError = cast("type[Exception]", slatedb.Error)

_EPOCH, _LSN, _COLLECTED = (keys.meta(name).encode() for name in ("epoch", "lsn", "collected"))
_REQUEST = keys.meta("request:")
_META = keys.META.encode()
_DURABLE = slatedb.ReadOptions(durability_filter=slatedb.DurabilityLevel.REMOTE, dirty=False, cache_blocks=True)
_SCAN = slatedb.ScanOptions(
    durability_filter=slatedb.DurabilityLevel.REMOTE,
    dirty=False,
    read_ahead_bytes=4 << 20,
    cache_blocks=True,
    max_fetch_tasks=4,
)
_EVERYTHING = slatedb.KeyRange(start=None, start_inclusive=True, end=None, end_inclusive=False)
_TO_TABLE = slatedb.FlushOptions(flush_type=slatedb.FlushType.MEM_TABLE)


class Database:
    """One open state database. Its methods are coroutines of one event loop."""

    def __init__(self, location: Location, db: slatedb.Db) -> None:
        self._location = location
        self._db = db
        self._lock = asyncio.Lock()
        self._newest: slatedb.WriteHandle | None = None
        self._answers: dict[str, tuple[int, Message, float]] = {}
        self._terms = Terms()
        self._writes_unflushed = 0
        self._flushing: asyncio.Task[None] | None = None
        self.epoch: Epoch

    @classmethod
    async def open(cls, location: Location, flush_ms: int = 5) -> Database:
        """Open the database at the location, or create it; whoever had it open is fenced.

        Raises `UnsafeEndpointError`, `SettingsError` or `StoreError`; SlateDB's own errors are wrapped.
        """
        try:
            store, path = slate_maintain.open_slate(location)
        except OSError as error:
            raise StoreError(f"{location.url}: the folder of the state cannot be made: {error.strerror}") from error
        builder = slatedb.DbBuilder(path, store)
        settings = slatedb.Settings.default()
        for name, value in {**SETTINGS, "flush_interval": f'"{flush_ms}ms"'}.items():
            settings.set(name, value)
        builder.with_settings(settings)
        try:
            _, db = await asyncio.gather(asyncio.to_thread(probe, location), builder.build())
            self = cls(location, db)
            self.epoch = await self._find_epoch()
        except DatabaseError as error:
            raise StoreError(f"{location.url}: the state database cannot be opened: {error}") from error
        return self

    async def close(self) -> None:
        """Close; everything answered is durable already, so nothing is lost when this is not reached."""
        if self._flushing is not None:
            self._flushing.cancel()
        if self._writes_unflushed >= FLUSH_AT_CLOSE_AFTER_WRITES:
            with contextlib.suppress(TimeoutError):  # it waits for compaction when there are many tables already
                await asyncio.wait_for(self._db.flush_with_options(_TO_TABLE), CLOSE_FLUSH_SECONDS)
        await self._db.shutdown_with_options(slatedb.CloseOptions(flush_type=slatedb.FlushType.WAL))

    @property
    def lost(self) -> str | None:
        """Why the database closed under us (`FENCED` when another writer opened it), None while it is open."""
        reason = self._db.status().close_reason
        return None if reason is None else reason.name

    # Reads

    async def get(self, key: str) -> bytes | None:
        """The durable value of a key."""
        return await self._db.get_with_options(key.encode(), _DURABLE)

    async def get_many(self, names: Sequence[str]) -> list[tuple[str, bytes]]:
        """The keys that have a value, with it, in the order asked."""
        values = await asyncio.gather(*(self.get(name) for name in names))
        return [(name, value) for name, value in zip(names, values, strict=True) if value is not None]

    async def scan(self, prefix: str, after: str | None, limit: int | None) -> AsyncIterator[list[slatedb.KeyValue]]:
        """Keys with a prefix, in order, from one snapshot; `meta:` keys are the service's own and left out.

        A page has about `PAGE_BYTES`, guessed from the size of the rows before it.
        """
        first, end = prefix.encode(), _end_of_prefix(prefix.encode())
        from_after = after is not None and after.encode() >= first
        start = after.encode() if after is not None and from_after else first
        if end is not None and start >= end:
            return
        rows = await self._db.scan_with_options(
            slatedb.KeyRange(start=start, start_inclusive=not from_after, end=end, end_inclusive=False), _SCAN
        )
        left, size = limit, FIRST_PAGE_ROWS
        while left is None or left > 0:
            page = await rows.next_batch(size if left is None else min(size, left))
            if not page:
                return
            row_bytes = sum(len(row.key) + len(row.value) for row in page) // len(page) + 1
            size = max(1, min(PAGE_BYTES // row_bytes, size * 4, MAX_PAGE_ROWS))
            kept = [row for row in page if not row.key.startswith(_META)]
            if left is not None:
                left -= len(kept)
            if kept:
                yield kept

    # Changes

    async def write(self, request: Request, writes: Sequence[Write], lease: tuple[str, int] | None) -> Message:
        """Write all rows, or none if a guard does not hold (`applied` is False) or the lease is not held."""
        for row in writes:
            if row.key.startswith((keys.META, keys.LOCK)):
                raise ValueError(f"state key {row.key[:80]!r}: these keys belong to the state service")

        async def plan(batch: Batch) -> Message:
            if lease is not None and await self._held(*lease) is None:
                return {"applied": False, "lost": True}
            for row in writes:
                if row.guarded and await self._db.get(row.key.encode()) != row.expected:
                    return {"applied": False, "lost": False}
            batch.update((row.key.encode(), row.value) for row in writes)
            return {"applied": True, "lost": False}

        return await self._once(request, plan)

    async def next_lsns(self, request: Request, count: int) -> Message:
        """Hand out `count` consecutive LSNs; answers the first."""
        if not 0 < count <= MAX_LSNS:
            raise ValueError(f"LSNs: 1 to {MAX_LSNS} at a time")

        async def plan(batch: Batch) -> Message:
            return {"first": await self._take_lsns(batch, count)}

        return await self._once(request, plan)

    async def begin_epoch(self, request: Request, above: int) -> Message:
        """Count on in a new epoch, above every earlier one and `above`."""

        async def plan(batch: Batch) -> Message:
            epoch = await asyncio.to_thread(slate_epochs.claim, self._location, above)
            batch.update({_EPOCH: epoch.encode(), _LSN: b"0"})
            self.epoch = epoch
            return {"epoch": epoch.number}

        return await self._once(request, plan)

    async def acquire(self, request: Request, name: str, holder: Holder, ttl_seconds: float) -> Message:
        """Grant a lease; answers its token, or who holds it and for how many seconds at most."""
        if not 0 < len(name) <= MAX_TEXT or not 0 < ttl_seconds <= MAX_TTL_SECONDS:
            raise ValueError(f"a lease has a name and holds for at most {MAX_TTL_SECONDS:.0f} seconds")
        key = keys.lock(name).encode()

        async def plan(batch: Batch) -> Message:
            raw = await self._db.get(key)
            if raw is not None:
                record = LeaseRecord.parse(raw)
                left = self._terms.seconds_left(name, record)
                if left > 0 and not record.holder.is_gone():
                    return {"holder": str(record.holder), "seconds": left}
            record = LeaseRecord.grant(await self._take_lsns(batch, 1), holder, ttl_seconds)
            batch[key] = record.encode()
            self._terms.start(name, record)
            return {"token": record.token}

        return await self._once(request, plan)

    async def renew(self, request: Request, name: str, token: int) -> Message:
        """Begin a new term of a lease, also of an expired one that nobody has taken; `held` is False if taken."""

        async def plan(batch: Batch) -> Message:
            record = await self._held(name, token)
            if record is None:
                return {"held": False}
            renewed = LeaseRecord.grant(token, record.holder, record.ttl_seconds)
            batch[keys.lock(name).encode()] = renewed.encode()
            self._terms.start(name, renewed)
            return {"held": True}

        return await self._once(request, plan)

    async def release(self, request: Request, name: str, token: int) -> Message:
        """Give a lease back; nothing happens if it is no longer held."""

        async def plan(batch: Batch) -> Message:
            if await self._held(name, token) is None:
                return {"held": False}
            batch[keys.lock(name).encode()] = None
            self._terms.end(name)
            return {"held": True}

        return await self._once(request, plan)

    async def _once(self, request: Request, plan: Callable[[Batch], Awaitable[Message]]) -> Message:
        """Plan and write one change, unless its request was answered before; wait until it is durable.

        Also an answer that wrote nothing waits for what it saw.
        """
        async with self._lock:
            sequence, answer = await self._last_answer(request.session)
            if request.sequence < sequence:
                raise ValueError("a request came after a later one of its session")
            if request.sequence > sequence:
                batch: Batch = {}
                answer = await plan(batch)
                now = time.time()
                if batch:
                    stored = {"sequence": request.sequence, "answer": answer, "at": now}
                    batch[f"{_REQUEST}{request.session}".encode()] = json.dumps(stored).encode()
                    await self._submit(batch)
                self._answers[request.session] = (request.sequence, answer, now)
            newest = self._newest
        if newest is not None:
            await newest.await_durable()
        return answer

    async def _submit(self, batch: Batch) -> None:
        writes = slatedb.WriteBatch()
        for key, value in batch.items():
            if value is None:
                writes.delete(key)
            else:
                writes.put(key, value)
        self._newest = await self._db.write(writes)
        self._writes_unflushed += 1

    async def _last_answer(self, session: str) -> tuple[int, Message]:
        if known := self._answers.get(session):
            return known[:2]
        raw = await self._db.get(f"{_REQUEST}{session}".encode())
        if raw is None:
            return 0, {}
        stored = json.loads(raw)
        return int(stored["sequence"]), stored["answer"]

    async def _held(self, name: str, token: int) -> LeaseRecord | None:
        raw = await self._db.get(keys.lock(name).encode())
        record = None if raw is None else LeaseRecord.parse(raw)
        return record if record is not None and record.token == token else None

    async def _take_lsns(self, batch: Batch, count: int) -> int:
        counter = int(await self._db.get(_LSN) or 0)
        if counter + count >= 1 << COUNTER_BITS:
            raise StoreError(f"{self._location.url}: the LSNs of epoch {self.epoch.number} are used up")
        batch[_LSN] = b"%d" % (counter + count)
        return self.epoch.lsn(counter)

    async def _find_epoch(self) -> Epoch:
        raw = await self._db.get(_EPOCH)
        epoch = None if raw is None else Epoch.parse(raw)
        if epoch is not None and await asyncio.to_thread(slate_epochs.is_current, self._location, epoch):
            return epoch
        epoch = await asyncio.to_thread(slate_epochs.claim, self._location)
        await self._submit({_EPOCH: epoch.encode(), _LSN: b"0"})
        if self._newest is not None:
            await self._newest.await_durable()
        return epoch

    # Housekeeping

    async def keep_house(self) -> None:
        """Bound what piles up: the log to be replayed at the next opening, old answers, unused objects."""
        if self._writes_unflushed >= FLUSH_AFTER_WRITES and (self._flushing is None or self._flushing.done()):
            self._writes_unflushed = 0
            self._flushing = asyncio.create_task(self._db.flush_with_options(_TO_TABLE))
        collected = await self._db.get(_COLLECTED)
        if collected is None or time.time() - float(collected) > COLLECT_SECONDS:
            await self._forget_answers()
            async with self._lock:
                await self._submit({_COLLECTED: b"%d" % time.time()})
            if collected is not None:
                await slate_maintain.collect(self._location)

    async def _forget_answers(self) -> None:
        """Delete the answers of sessions that ended, the oldest first if they are too many."""
        now = time.time()
        rows = await self._db.scan_prefix(_REQUEST.encode(), _EVERYTHING)
        ages: list[tuple[float, bytes]] = []
        while page := await rows.next_batch(MAX_PAGE_ROWS):
            ages += [(now - float(json.loads(row.value)["at"]), row.key) for row in page]
        ages.sort(reverse=True)
        crowd = len(ages) - MAX_ANSWERS
        old = [
            key
            for rank, (age, key) in enumerate(ages)
            if age > ANSWER_SECONDS or (rank < crowd and age > RETRY_SECONDS)
        ]
        async with self._lock:
            for session, (_, _, at) in list(self._answers.items()):
                if now - at > RETRY_SECONDS:
                    del self._answers[session]
            batch: Batch = {key: None for key in old if key.decode().removeprefix(_REQUEST) not in self._answers}
            if batch:
                await self._submit(batch)

    async def flush_to_table(self) -> None:
        """Make a table of what only the log holds, so that it can be compacted and need not be replayed."""
        self._writes_unflushed = 0
        await self._db.flush_with_options(_TO_TABLE)


def _end_of_prefix(prefix: bytes) -> bytes | None:
    """The first key after all that start with the prefix; no UTF-8 text ends in 0xFF."""
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else None
