"""One process among several that use the state; what it says goes to standard output as JSON lines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pkm_pipelines.settings import StateSettings
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_client import State


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def wait() -> None:
    """Until the test says go."""
    sys.stdin.readline()


def info(state: State) -> None:
    """Which service answers."""
    say("ready")
    wait()
    say(state.info())


def increment(state: State, key: str, times: str) -> None:
    """Add one, so many times, by compare-and-set."""
    say("ready")
    wait()
    tries = 0
    for done in range(int(times)):
        while True:
            tries += 1
            value = state.get(key)
            if state.cas(key, value, b"%d" % (int(value or 0) + 1)):
                break
        if done % 10 == 0:
            say(done)
    say({"tries": tries})


def put(state: State, prefix: str) -> None:
    """Put one key after the other for ever, and say which are done."""
    for number in range(1_000_000):
        state.put(f"{prefix}{number:06d}", b"%d" % number)
        say(number)


def lsns(state: State, times: str, count: str) -> None:
    """Take ranges of LSNs."""
    wait()
    say([state.next_lsns(int(count)).start for _ in range(int(times))])


def lease(state: State, name: str, ttl_seconds: str) -> None:
    """Hold a lease without renewing it, until killed."""
    say(state.acquire(name, ttl_seconds=float(ttl_seconds)).token)
    wait()


def turns(state: State, name: str, times: str) -> None:
    """Add one to a file-like key under a lease, with a read and a write that nothing else protects."""
    wait()
    for _ in range(int(times)):
        with state.acquire(name, ttl_seconds=5, wait_seconds=60) as held:
            value = int(state.get("counter:turns") or 0)
            time.sleep(0.001)
            state.put("counter:turns", b"%d" % (value + 1))
            held.check()
    say("done")


if __name__ == "__main__":
    url, runtime_dir, job, *words = sys.argv[1:]
    with State.connect(Location(url), StateSettings(idle_seconds=30), Path(runtime_dir)) as state:
        {"info": info, "increment": increment, "put": put, "lsns": lsns, "lease": lease, "turns": turns}[job](
            state, *words
        )
