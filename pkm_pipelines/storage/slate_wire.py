"""What client and service of the state say to each other, over Arrow Flight.

An action is one request. `get` has a key as its body and one result, or none if the key is absent. `write` has an
Arrow IPC stream of one batch (`WRITES`) whose schema metadata holds the rest of the request as JSON. Every other
action has JSON as body and result. A `do_get` ticket is JSON too, `{"scan": prefix, "after": key, "limit": n}` or
`{"keys": [...]}`, and is answered by a stream of `ROWS`.

A request that changes something names a session and its sequence number there. Whoever repeats the pair gets the
answer of the first time (exactly-once, as in RIFL: C. Lee et al., SOSP 2015). A session has one request in flight.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

MAX_KEY_BYTES = 16 << 10
MAX_VALUE_BYTES = 16 << 20
MAX_REQUEST_BYTES = 64 << 20
MAX_KEYS = 10_000

Message = dict[str, Any]

ROWS = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.binary(), nullable=False)])

# A row writes `value` (null deletes) under `key`; a guarded one only if the key's value is `expected` (null: absent).
WRITES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("value", pa.binary()),
        pa.field("guarded", pa.bool_(), nullable=False),
        pa.field("expected", pa.binary()),
    ]
)
_METADATA_KEY = b"pkm"


@dataclass(frozen=True)
class Write:
    """One row of a write."""

    key: str
    value: bytes | None
    guarded: bool = False
    expected: bytes | None = None

    def check(self) -> None:
        """Raise `ValueError` naming the key if it or the value is too large or empty."""
        check_key(self.key)
        if self.value is not None and len(self.value) > MAX_VALUE_BYTES:
            raise ValueError(f"state key {self.key[:80]!r}: a value has {MAX_VALUE_BYTES >> 20} MiB at most")


@dataclass(frozen=True)
class Request:
    """Who asks, and for the how-manieth time."""

    session: str
    sequence: int

    @classmethod
    def parse(cls, message: Message) -> Request:
        """The request of a message; raises `ValueError`."""
        match message:
            case {"session": str(session), "sequence": int(sequence)} if (
                0 < len(session) <= 64 and session.isascii() and session.isalnum() and 0 < sequence < 1 << 63
            ):
                return cls(session, sequence)
            case _:
                raise ValueError("a request names its session and sequence")


def check_key(key: str) -> None:
    """Raise `ValueError` unless it can be a key."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError(f"state key {key[:80]!r}: is not Unicode text") from None
    if not 0 < size <= MAX_KEY_BYTES or "\0" in key:
        raise ValueError(f"state key {key[:80]!r}: must have 1 to {MAX_KEY_BYTES} bytes, none of them NUL")


def encode_writes(writes: Sequence[Write], message: Message) -> bytes:
    """The body of a `write` action; raises `ValueError` if a row or the whole is too large."""
    for write in writes:
        write.check()
    schema = WRITES.with_metadata({_METADATA_KEY: json.dumps(message).encode()})
    batch = pa.record_batch(
        [
            pa.array([write.key for write in writes], pa.string()),
            pa.array([write.value for write in writes], pa.binary()),
            pa.array([write.guarded for write in writes], pa.bool_()),
            pa.array([write.expected for write in writes], pa.binary()),
        ],
        schema=schema,
    )
    if batch.nbytes > MAX_REQUEST_BYTES - (1 << 20):
        raise ValueError(f"state: {len(writes)} writes at once have {batch.nbytes >> 20} MiB; write fewer at a time")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def decode_writes(body: pa.Buffer) -> tuple[list[Write], Message]:
    """The rows and the message of a `write` action; raises `ValueError` for anything malformed."""
    with pa.ipc.open_stream(body) as reader:
        if not reader.schema.equals(WRITES):
            raise ValueError("a write has the columns key, value, guarded, expected")
        message = parse_message((reader.schema.metadata or {}).get(_METADATA_KEY, b""))
        batch = reader.read_next_batch()
    batch.validate(full=True)
    if batch.column("key").null_count or batch.column("guarded").null_count:
        raise ValueError("a write's key and guarded are never null")
    writes = [Write(*row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]
    for write in writes:
        write.check()
    return writes, message


def parse_message(body: bytes) -> Message:
    """A JSON object; raises `ValueError` for anything else."""
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("a message is a JSON object")
    return message
