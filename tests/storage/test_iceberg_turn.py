"""Turns of writers: one at a time, free when their owner is dead, and nothing depends on them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pkm_pipelines.storage import iceberg_turn
from pkm_pipelines.storage.iceberg_turn import Turn
from pkm_pipelines.storage.iceberg_update import Change, update_table
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import LOG, STATE, contents, delta, thing, write


@pytest.fixture(autouse=True)
def runtime_dir(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(work))
    return work / "pkm"


def gets_turn(table: str = "t") -> bool:
    """Whether a thread of its own gets its turn."""
    found: list[bool] = []

    def body() -> None:
        with Turn("sqlite:///x", table) as turn:
            turn.take()
            found.append(turn.is_taken)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return found[0]


def test_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iceberg_turn, "WAIT_SECONDS", 0.05)
    with Turn("sqlite:///x", "t") as turn:
        assert gets_turn(), "a turn that was not taken keeps nobody waiting"
        turn.take()
        turn.take()
        assert not gets_turn(), "who waited long enough goes without"
        with Turn("sqlite:///x", "other") as other:
            other.take()
            assert gets_turn("other"), "who has a turn is not given another, and keeps nobody waiting for it"
    assert gets_turn()


def test_it_dies_with_its_owner(runtime_dir: Path) -> None:
    code = (
        "import sys; from pkm_pipelines.storage.iceberg_turn import Turn\n"
        "turn = Turn('sqlite:///x', 't'); turn.take(); print('taken', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        assert [path.suffix for path in runtime_dir.iterdir()] == [".turn"]
        process.kill()
        process.wait()
    assert gets_turn()


def test_without_a_runtime_folder(monkeypatch: pytest.MonkeyPatch, runtime_dir: Path, tables: TableManager) -> None:
    runtime_dir.write_text("a file")
    assert not gets_turn()
    write(tables, STATE, [thing("a", 1)])
    assert contents(tables, STATE).keys() == {"a"}


def test_who_was_too_late_plans_once_more(tables: TableManager) -> None:
    """A rival is quicker than its first plan; while it makes its second one, rivals wait."""
    tables.ensure(STATE)
    rivals: list[threading.Thread] = []

    def write_rows(number: int) -> None:
        write(TableManager(tables.iceberg), STATE, [thing(f"r{number}", number)])

    class Store:
        """The store, with rivals that begin whenever the table has been loaded."""

        def __getattr__(self, name: str) -> object:
            return getattr(tables.iceberg, name)

        def load(self, name: str) -> object:
            found = tables.iceberg.load(name)
            rivals.append(threading.Thread(target=write_rows, args=(len(rivals),)))
            rivals[-1].start()
            rivals[-1].join(20 if len(rivals) == 1 else 0.5)
            return found

    result = TableManager(Store()).write(delta(STATE, [thing("slow", 1)]))  # pyright: ignore[reportArgumentType]
    for thread in rivals:
        thread.join()
    assert result.attempts == len(rivals) == 2
    assert contents(tables, STATE).keys() == {"slow", "r0", "r1"}


def test_a_change_without_rows_takes_its_turn_too(tables: TableManager, runtime_dir: Path) -> None:
    tables.ensure(LOG)
    write(tables, LOG, [], "append")
    update_table(tables.iceberg, LOG.name, lambda _: Change(), what="nothing was done")
    assert not runtime_dir.exists() or not list(runtime_dir.glob("*.turn"))
    tables.set_mode(LOG.name, "hybrid")
    assert list(runtime_dir.glob("*.turn"))
