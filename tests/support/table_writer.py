"""A writer of tables in a process of its own, for tests of races and of being killed.

`python -m tests.support.table_writer WAREHOUSE CATALOG COMMAND …` waits for a line on standard input, works, and
prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.iceberg import LOG, STATE, Place, delta, event, thing, write

ROOT = Path(__file__).resolve().parents[2]
OWN_ROWS = 10


def start(place: Place, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a writer; it waits until `go` is called."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", __name__, place.warehouse, place.catalog, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def go(*processes: subprocess.Popen[bytes], timeout: float = 240) -> list[Any]:
    """Let writers that were started run, all at once; returns what they printed. Fails if one of them failed."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", process.communicate()[1].decode()[-2000:]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=timeout) for process in processes]
    for process, (_, error) in zip(processes, outcomes, strict=True):
        assert process.returncode in (0, -signal.SIGKILL), error.decode()[-2000:]
    return [json.loads(out) if out else None for out, _ in outcomes]


def write_many(manager: Any, name: str, rounds: str) -> dict[str, int]:
    """Write to both tables, again and again: rows of this writer's own, rows that all write, and its own mark."""
    attempts = added = 0
    for number in range(int(rounds)):
        rows = [thing(f"{name}-{number}", number), thing("shared", number, lsn=number, group=name)]
        attempts += write(manager, STATE, rows, watermarks={name: number}).attempts
        events = [event(f"{name}-{number}"), event(f"all-{number}")]
        added += write(manager, LOG, events, "append").rows_added
    return {"attempts": attempts, "added": added}


def write_for(manager: Any, name: str, seconds: str) -> list[float]:
    """Change all rows of this writer's own and report it, again and again; the times at which it was acknowledged.

    The seconds begin with the first of these: how long a process takes to start is another matter.
    """
    times: list[float] = []
    while not times or time.time() < times[0] + float(seconds):
        turn = len(times) + 1
        write(manager, STATE, [thing(f"{name}-{number}", turn, lsn=turn) for number in range(OWN_ROWS)])
        write(manager, LOG, [event(f"{name}-{turn}", turn)], "append")
        times.append(time.time())
    return times


class Suicide:
    """A lease that kills its process when it is checked."""

    def check(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def die_before_commit(manager: Any, op_id: str, mark: str) -> None:
    """Write the files of a merge, and be killed before the catalog is asked."""
    rows = [thing(f"t{i}", 1, lsn=5) for i in range(20)]
    manager.write(delta(STATE, rows, op_id=op_id, watermarks={LOG.name: int(mark)}), lease=Suicide())


def die_after_commit(manager: Any, op_id: str, mark: str) -> None:
    """Commit, and be killed before anybody hears of it."""
    rows = [thing(f"t{i}", 1, lsn=5) for i in range(20)]
    catalog = manager.iceberg.catalog
    commit = catalog.commit_table

    def last(table: Any, requirements: Any, updates: Any) -> Any:
        response = commit(table, requirements, updates)
        if table.name()[-1] == STATE.table:
            Suicide().check()
        return response

    catalog.commit_table = last
    manager.write(delta(STATE, rows, op_id=op_id, watermarks={LOG.name: int(mark)}))


def die_while_pinning(manager: Any, op_id: str, mark: str) -> None:
    """Be killed right after the input was pinned."""
    catalog = manager.iceberg.catalog
    commit = catalog.commit_table

    def last(table: Any, requirements: Any, updates: Any) -> None:
        commit(table, requirements, updates)
        Suicide().check()

    catalog.commit_table = last
    manager.write(delta(STATE, [thing("t0", 1, lsn=5)], op_id=op_id, watermarks={LOG.name: int(mark)}))


def main() -> None:
    """Run one command."""
    from pkm_pipelines.tables.manager import TableManager

    warehouse, catalog, command, *arguments = sys.argv[1:]
    manager = TableManager(Place(warehouse, catalog).open())
    for spec in (STATE, LOG):
        manager.ensure(spec)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(globals()[command](manager, *arguments)), flush=True)


if __name__ == "__main__":
    main()
