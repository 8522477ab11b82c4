"""What a lease is: who holds it, until when, and how the service can tell that a holder is gone.

A lease says who may write a table. Its *fencing token* grows with every grant, so that a holder that slept through
its own expiry is refused afterwards (M. Kleppmann, "How to do distributed locking", 2016; C. Gray and D. Cheriton,
"Leases", 1989). Time is the service's alone; the holder's clock is never read.

Within one life of the service, expiry is counted on its monotonic clock. A service that finds a lease of an earlier
life cannot know how much of it is left. It grants one whole further term from its own start, which is at least as
long as the holder may believe to have, but never past the recorded wall-clock expiry plus one term: a service that
comes and goes would else keep a dead holder's lease alive for ever. Should the wall clock have jumped ahead by more
than that, a living holder loses its lease early, and its token is refused: an error, and no lost update.

A holder on the service's own host is looked at: when its process has ended, its lease is free at once.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_TTL_SECONDS = 24 * 3600.0
MAX_TEXT = 512


@dataclass(frozen=True)
class Holder:
    """A process: `host` tells kernels and process namespaces apart, `started` tells reused process ids apart."""

    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Holder:
        """This process."""
        return cls(this_host(), os.getpid(), process_start(os.getpid()) or "")

    @classmethod
    def parse(cls, value: Any) -> Holder:
        """A holder from JSON; raises `ValueError` for anything else."""
        match value:
            case {"host": str(host), "pid": int(pid), "started": str(started)} if (
                len(host) <= MAX_TEXT and len(started) <= MAX_TEXT and pid > 0
            ):
                return cls(host, pid, started)
            case _:
                raise ValueError("a holder is a host, a process id and its start")

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False if it runs, or ran on another host."""
        if self.host != this_host():
            return False
        start = process_start(self.pid)
        return not _exists(self.pid) if start is None else start != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


@dataclass(frozen=True)
class LeaseRecord:
    """What stands under `lock:<name>`; `expires_at` is in seconds since 1970 by the service's wall clock."""

    token: int
    holder: Holder
    ttl_seconds: float
    expires_at: float

    @classmethod
    def grant(cls, token: int, holder: Holder, ttl_seconds: float) -> LeaseRecord:
        """A lease from now on."""
        return cls(token, holder, ttl_seconds, time.time() + ttl_seconds)

    @classmethod
    def parse(cls, raw: bytes) -> LeaseRecord:
        """A record as it was stored."""
        value = json.loads(raw)
        return cls(
            int(value["token"]), Holder.parse(value["holder"]), float(value["ttl_seconds"]), float(value["expires_at"])
        )

    def encode(self) -> bytes:
        """The record as JSON."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()


class Terms:
    """When leases end, on the monotonic clock of this service."""

    def __init__(self) -> None:
        self._ends: dict[str, tuple[int, float]] = {}

    def start(self, name: str, record: LeaseRecord) -> None:
        """A term begins now, because the lease was granted or renewed."""
        self._ends[name] = (record.token, time.monotonic() + record.ttl_seconds)

    def end(self, name: str) -> None:
        """The lease was given back."""
        self._ends.pop(name, None)

    def seconds_left(self, name: str, record: LeaseRecord) -> float:
        """How long the lease still holds; 0 or less when it has expired."""
        token, end = self._ends.get(name, (None, 0.0))
        if token != record.token:  # granted by an earlier life of the service
            grace = record.expires_at + record.ttl_seconds - time.time()
            end = time.monotonic() + min(record.ttl_seconds, grace)
            self._ends[name] = (record.token, end)
        return end - time.monotonic()


@functools.cache
def this_host() -> str:
    """Host name, boot and process namespace: two processes with the same text can see each other's ids."""
    boot = namespace = ""
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()}/{boot}/{namespace}"


def process_start(pid: int) -> str | None:
    """When a process started, in a text that only it has; "" if it is a zombie, None if it cannot be seen.

    On Linux these are the clock ticks since boot (proc_pid_stat(5), field 22), which no change of the wall clock moves.
    """
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return "" if fields[0] in "ZX" else fields[19]
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(int(process.create_time()))
    except psutil.NoSuchProcess:
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, where /proc shows only one's own
        return True
    return True
