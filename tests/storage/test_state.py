"""What the state promises, on local disk and on S3 alike."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from pkm_pipelines.model.errors import StateUnavailableError, StoreError
from pkm_pipelines.model.records import Mutation
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate_client import State
from pkm_pipelines.storage.slate_epochs import COUNTER_BITS
from tests.support.state import OpenState, SharedState, Worker


@pytest.fixture
def state(shared_state: SharedState) -> State:
    return shared_state.state


def test_values_are_put_got_and_deleted(state: State) -> None:
    assert state.get("note:a:x.md") is None
    state.put("note:a:x.md", b"one")
    state.put("note:a:Größe 🌱.md", b"\0\xff")
    state.put("note:a:empty", b"")
    assert state.get("note:a:x.md") == b"one"
    assert state.get("note:a:empty") == b""
    names = ["note:a:x.md", "note:a:none", "note:a:Größe 🌱.md"]
    assert state.get_many(names) == {"note:a:x.md": b"one", "note:a:Größe 🌱.md": b"\0\xff"}
    assert state.get_many([]) == {}
    state.put("note:a:x.md", b"two")
    assert state.get("note:a:x.md") == b"two"
    state.delete("note:a:x.md")
    state.delete("note:a:never there")
    assert state.get("note:a:x.md") is None


def test_a_scan_is_ordered_bounded_and_keeps_to_its_prefix(state: State) -> None:
    rows = [(f"note:a:{n:05d}", b"%d" % n) for n in range(2500)]
    state.apply([Mutation(*row) for row in reversed(rows)])
    state.apply([Mutation("note:", b"x"), Mutation("note:b:0", b"x"), Mutation("note;", b"x"), Mutation("é", b"x")])
    assert list(state.scan("note:a:")) == rows
    assert list(state.scan("note:a:", start_after="note:a:00007", limit=3)) == rows[8:11]
    assert list(state.scan("note:a:", start_after="a")) == rows
    assert list(state.scan("note:a:", start_after="note:b")) == []
    assert list(state.scan("note:a:", limit=0)) == []
    assert [key for key, _ in state.scan("note", start_after="note:a:02498")] == ["note:a:02499", "note:b:0", "note;"]
    everything = [key for key, _ in state.scan("")]
    assert everything == ["note:", *(key for key, _ in rows), "note:b:0", "note;", "é"]
    first = state.scan("note:a:")
    assert next(first) == rows[0]


def test_a_scan_reads_one_moment(state: State) -> None:
    state.apply([Mutation(f"k:{n:05d}", bytes(5000)) for n in range(2000)])  # more than lies on the way to a reader
    rows = state.scan("k:")
    seen = [next(rows)]
    state.apply([Mutation(f"k:{n:05d}", None) for n in range(1000, 2000)])
    seen += rows
    assert len(seen) == 2000
    assert sum(1 for _ in state.scan("k:")) == 1000


def test_compare_and_set(state: State) -> None:
    assert not state.cas("cursor:a", b"1", b"2")
    assert state.cas("cursor:a", None, b"1")
    assert not state.cas("cursor:a", None, b"2")
    assert state.cas("cursor:a", b"1", b"2")
    assert state.get("cursor:a") == b"2"
    assert state.cas("cursor:a", b"2", None)
    assert state.get("cursor:a") is None


def test_a_batch_is_written_as_one(state: State) -> None:
    state.put("note:a:gone", b"x")
    state.apply([])
    state.apply([Mutation("note:a:new", b"1"), Mutation("note:a:gone", None), Mutation("note:a:new", b"2")])
    assert dict(state.scan("note:")) == {"note:a:new": b"2"}
    with pytest.raises(StoreError, match="state key 'lock:x'"):
        state.apply([Mutation("note:a:other", b"1"), Mutation("lock:x", b"1")])
    assert dict(state.scan("note:")) == {"note:a:new": b"2"}


def test_a_batch_never_shows_half(state: State) -> None:
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            state.apply([Mutation(f"pair:{n}", b"%d" % turn) for n in range(50)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            assert len({value for _, value in state.scan("pair:")}) <= 1
    finally:
        stop.set()
        writer.join()


def test_clear_deletes_a_prefix_in_batches_and_spares_leases(state: State) -> None:
    state.apply([Mutation(f"note:a:{n}", b"x") for n in range(4500)] + [Mutation("note:b:0", b"x")])
    with state.acquire("t", ttl_seconds=60) as lease:
        assert state.clear("note:a:") == 4500
        assert [key for key, _ in state.scan("")] == ["lock:t", "note:b:0"]
        assert state.clear("", lease=lease) == 1
        lease.check()


def test_lsns_grow_and_are_handed_out_once(state: State) -> None:
    ranges = [state.next_lsns(1), state.next_lsns(1000), state.next_lsns(7)]
    assert [len(found) for found in ranges] == [1, 1000, 7]
    numbers = [lsn for found in ranges for lsn in found]
    assert numbers == sorted(set(numbers))
    assert 0 < numbers[0] < numbers[-1] < 1 << 63
    assert {lsn >> COUNTER_BITS for lsn in numbers} == {state.info()["epoch"]}
    with pytest.raises(StoreError, match="LSNs"):
        state.next_lsns(0)


def test_lsns_of_many_processes_do_not_overlap(shared_state: SharedState) -> None:
    state = shared_state.state
    workers = [Worker(shared_state.location, shared_state.runtime_dir, "lsns", 20, 10) for _ in range(4)]
    for worker in workers:
        worker.go()
    starts = sorted(start for worker in workers for start in worker.next())
    assert len(starts) == 80
    assert all(b - a >= 10 for a, b in itertools.pairwise(starts))
    assert state.next_lsns(1).start >= starts[-1] + 10


def test_a_new_epoch_counts_above_the_old_one(state: State) -> None:
    before = state.next_lsns(5)
    epoch = state.begin_epoch()
    assert state.next_lsns(1).start > before.stop
    assert state.info()["epoch"] == epoch
    assert state.begin_epoch(above=epoch + 10) == epoch + 11


@pytest.mark.parametrize("key", ["", "a\0b", "x" * 20_000, "\ud800"])
def test_an_impossible_key_is_refused(state: State, key: str) -> None:
    for ask in (lambda: state.get(key), lambda: state.put(key, b""), lambda: state.get_many([key])):
        with pytest.raises(StoreError, match="state key"):
            ask()


def test_too_much_at_once_is_refused_by_name(state: State) -> None:
    with pytest.raises(StoreError, match="'big': a value has 16 MiB"):
        state.put("big", bytes((16 << 20) + 1))
    with pytest.raises(StoreError, match="5 writes at once have 75 MiB"):
        state.apply([Mutation(f"k{n}", bytes(15 << 20)) for n in range(5)])
    state.put("big", bytes(5 << 20))
    assert state.get("big") == bytes(5 << 20)


def test_a_closed_state_says_so(shared_state: SharedState) -> None:
    state = shared_state.open()
    state.put("a", b"1")
    state.close()
    with pytest.raises(StateUnavailableError, match="was closed"):
        state.get("a")


def test_one_state_serves_many_threads(state: State) -> None:
    def add() -> None:
        for _ in range(25):
            while True:
                value = state.get("counter")
                if state.cas("counter", value, b"%d" % (int(value or 0) + 1)):
                    break

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.get("counter") == b"100"


def test_eight_processes_lose_no_increment(shared_state: SharedState, budget: int) -> None:
    times = 20 * budget
    workers = [Worker(shared_state.location, shared_state.runtime_dir, "increment", "counter", times) for _ in range(8)]
    for worker in workers:
        assert worker.next() == "ready"
    for worker in workers:
        worker.go()
    for worker in workers:
        while not isinstance(worker.next(), dict):
            pass
    assert shared_state.state.get("counter") == b"%d" % (8 * times)


def test_local_paths_may_have_any_name(work: Path, open_state: OpenState) -> None:
    location = Location((work / "Größe 100% #1? ü").as_uri())
    state = open_state(location)
    state.put("a", b"1")
    state.stop_service()
    assert state.get("a") == b"1"
    assert {path.name for path in location.path.iterdir()} == {"db", "epoch"}
