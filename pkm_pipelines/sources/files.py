"""Reading files that other programs may be writing: whole notes, and media as streams.

Nothing here follows a link (O_NOFOLLOW) or waits for a pipe (O_NONBLOCK), also when a file is swapped for
one between being listed and being opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pkm_pipelines.model.errors import SourceError

CHUNK_BYTES = 1 << 20
_ATTEMPTS = 4
_PAUSE_SECONDS = 0.05
# Timestamps step with the kernel's clock tick (10 ms at HZ=100).
TICK_NS = 20_000_000
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class ChangingError(Exception):
    """A file kept changing while it was read."""


class TooLargeError(Exception):
    """A file grew over the limit; the argument is its size in bytes."""


@dataclass(frozen=True, slots=True)
class Read:
    """The bytes of a file (None where only their hash was asked for), and how the file stood while they were read."""

    content: bytes | None
    hash: str
    stat: os.stat_result
    at_ns: int


def mark(found: os.stat_result) -> tuple[int, int, int]:
    """What tells, without reading, that a file is another one: size, mtime and ctime, in bytes and nanoseconds.

    ctime is there because tools set mtime back (rsync, unzip, `touch -r`) and nothing sets ctime back; git
    trusts it likewise (core.trustctime). An inode says no more than ctime does, and changes on some network mounts.
    """
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read(path: str, *, max_bytes: int, keep: bool = True) -> Read:
    """Read a whole file, again if it changes meanwhile; with `keep` false only hash it, in constant memory.

    A file that has changed within this tick of the clock is left alone until the tick is over, because a change
    after reading it would not show in its times.
    Raises `OSError`, `ChangingError` after four attempts, and `TooLargeError` above `max_bytes`.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS * attempt)
        descriptor = _open(path)
        try:
            before = os.fstat(descriptor)
            wait_ns = before.st_ctime_ns + TICK_NS + 1 - time.time_ns()
            if 0 < wait_ns <= TICK_NS + 1:
                time.sleep(wait_ns / 1e9)
                if mark(os.fstat(descriptor)) != mark(before):
                    continue
            at_ns = time.time_ns()
            if before.st_size > max_bytes:
                raise TooLargeError(before.st_size)
            digest, parts, size = hashlib.sha256(), [], 0
            while chunk := os.read(descriptor, CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    break
                digest.update(chunk)
                if keep:
                    parts.append(chunk)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if mark(before) == mark(after) and size == after.st_size:
            return Read(b"".join(parts) if keep else None, digest.hexdigest(), after, at_ns)
    raise ChangingError(path)


def head(path: str, max_bytes: int) -> bytes:
    """The first bytes of a file; raises `OSError`."""
    descriptor = _open(path)
    try:
        return os.read(descriptor, max_bytes)
    finally:
        os.close(descriptor)


def stream(path: str) -> Iterator[bytes]:
    """The bytes of a file in chunks; raises `SourceError` if it cannot be read (any more)."""
    try:
        descriptor = _open(path)
        try:
            while chunk := os.read(descriptor, CHUNK_BYTES):
                yield chunk
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SourceError(f"{path!a}: it cannot be read any more ({error.strerror}); run again") from error


def _open(path: str) -> int:
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "not a regular file")
    return descriptor
