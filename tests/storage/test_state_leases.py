"""Leases: who may write, for how long, and what becomes of a writer that overslept."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.model.errors import LeaseHeldError, LeaseLostError, StoreError
from pkm_pipelines.model.records import Mutation
from pkm_pipelines.storage.slate_client import Lease, State
from pkm_pipelines.storage.slate_leases import Holder, LeaseRecord, Terms, process_start
from tests.support.state import SharedState, Worker, end_services

ELSEWHERE = {"host": "elsewhere/boot/pid:[1]", "pid": 7, "started": "1"}


@pytest.fixture
def state(shared_state: SharedState) -> State:
    return shared_state.state


@pytest.fixture
def table(request: pytest.FixtureRequest) -> str:
    """The name of a lease that no other test uses."""
    return request.node.name


def acquire_elsewhere(state: State, name: str, ttl_seconds: float) -> Lease:
    """A lease of a process that this host cannot look at."""
    answer = state._change("acquire", {"name": name, "ttl_seconds": ttl_seconds, "holder": ELSEWHERE})
    return Lease(state, name, answer["token"], ttl_seconds)


def test_a_lease_has_one_holder_until_it_is_given_back(state: State, table: str) -> None:
    with state.acquire(table, ttl_seconds=30) as lease:
        lease.check()
        with pytest.raises(LeaseHeldError, match=rf"{re.escape(table)}: process \d+ on .* is writing"):
            state.acquire(table, ttl_seconds=30)
        with state.acquire(f"{table}.other", ttl_seconds=30) as other:
            assert other.token > lease.token
        state.apply([Mutation("a", b"1")], lease=lease)
    assert state.get("a") == b"1"
    again = state.acquire(table, ttl_seconds=30)
    assert again.token > other.token
    again.release()
    again.release()
    with pytest.raises(LeaseLostError):
        again.check()


def test_a_writer_that_overslept_is_refused(state: State, table: str) -> None:
    old = acquire_elsewhere(state, table, 0.2)
    time.sleep(0.25)
    old.check()  # expired, but nobody took it
    time.sleep(0.25)
    new = state.acquire(table, ttl_seconds=30)
    assert new.token > old.token
    with pytest.raises(LeaseLostError, match="the lease was taken over"):
        state.apply([Mutation("a", b"1")], lease=old)
    assert state.get("a") is None
    with pytest.raises(LeaseLostError, match="the lease expired and was taken over"):
        old.check()
    old.release()
    new.check()
    state.apply([Mutation("a", b"2")], lease=new)
    state.apply([], lease=new)
    with pytest.raises(LeaseLostError):
        state.apply([], lease=old)
    assert state.get("a") == b"2"


def test_a_lease_in_use_is_renewed(state: State, table: str) -> None:
    with state.acquire(table, ttl_seconds=0.6) as lease:
        time.sleep(1.5)
        assert not is_free(state, table)
        lease.check()
    assert is_free(state, table)


def is_free(state: State, table: str) -> bool:
    return "token" in state._change("acquire", {"name": table, "ttl_seconds": 1, "holder": ELSEWHERE})


def test_waiting_for_a_lease(state: State, table: str) -> None:
    lease = state.acquire(table, ttl_seconds=30)
    timer = threading.Timer(0.3, lease.release)
    timer.start()
    start = time.monotonic()
    state.acquire(table, ttl_seconds=30, wait_seconds=20).check()
    assert 0.2 < time.monotonic() - start < 10
    with pytest.raises(LeaseHeldError):
        state.acquire(table, ttl_seconds=30, wait_seconds=0.2)
    timer.join()


def test_the_lease_of_a_dead_process_is_free_at_once(shared_state: SharedState, table: str) -> None:
    state = shared_state.state
    worker = Worker(shared_state.location, shared_state.runtime_dir, "lease", table, 3600)
    token = worker.next()
    with pytest.raises(LeaseHeldError, match=f"process {worker.pid} "):
        state.acquire(table, ttl_seconds=30)
    worker.kill()
    assert state.acquire(table, ttl_seconds=30).token > token


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_lease_outlives_the_service(shared_state: SharedState, table: str, how: str) -> None:
    state = shared_state.state
    mine = state.acquire(table, ttl_seconds=30)
    theirs = acquire_elsewhere(state, f"{table}.theirs", 1)
    if how == "killed":
        end_services(shared_state.runtime_dir)
    else:
        state.stop_service()
    started = time.monotonic()
    assert not is_free(state, theirs.name)
    assert not is_free(state, mine.name)
    mine.check()
    state.apply([Mutation("a", b"1")], lease=theirs)
    taken = state.acquire(theirs.name, ttl_seconds=30, wait_seconds=20)
    assert 0.5 < time.monotonic() - started < 10
    assert taken.token > theirs.token


def test_leases_keep_four_processes_apart(shared_state: SharedState, table: str, budget: int) -> None:
    workers = [Worker(shared_state.location, shared_state.runtime_dir, "turns", table, 5 * budget) for _ in range(4)]
    for worker in workers:
        worker.go()
    for worker in workers:
        assert worker.next() == "done"
    assert shared_state.state.get("counter:turns") == b"%d" % (20 * budget)


def test_tokens_grow_across_epochs(state: State, table: str) -> None:
    old = acquire_elsewhere(state, table, 0.01)
    state.begin_epoch()
    time.sleep(0.02)
    assert state.acquire(table, ttl_seconds=1).token > old.token


@pytest.mark.parametrize(("name", "ttl"), [("", 1), ("x" * 600, 1), ("t", 0), ("t", -1), ("t", 1e9), ("t", 1e400)])
def test_an_impossible_lease_is_refused(state: State, name: str, ttl: float) -> None:
    with pytest.raises(StoreError, match="lease"):
        state.acquire(name, ttl_seconds=ttl)


def test_a_holder_is_gone_when_its_process_is() -> None:
    me = Holder.current()
    assert not me.is_gone()
    assert Holder(me.host, me.pid, "another start").is_gone()
    assert not Holder("elsewhere", me.pid, "another start").is_gone()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = Holder(me.host, process.pid, process_start(process.pid) or "")
    assert not holder.is_gone()
    process.kill()
    for _ in range(500):  # not reaped: a zombie
        if holder.is_gone():
            break
        time.sleep(0.01)
    assert holder.is_gone()
    process.communicate()
    assert holder.is_gone()


@given(ttl=st.floats(0.1, 1000), ago=st.floats(-100_000, 100_000))
def test_after_a_restart_a_lease_has_a_further_term_at_most(ttl: float, ago: float) -> None:
    """However the wall clock moved meanwhile: at least a term if it did not, never more, and not for ever."""
    record = LeaseRecord(1, Holder("h", 1, ""), ttl, time.time() - ago)
    left = Terms().seconds_left("t", record)
    assert left <= ttl
    if ago <= 0:
        assert left > ttl - 1
    if ago > ttl:
        assert left <= 0


def test_a_term_is_of_one_token() -> None:
    terms, record = Terms(), LeaseRecord.grant(1, Holder("h", 1, ""), 100)
    terms.start("t", record)
    assert 99 < terms.seconds_left("t", record) <= 100
    assert LeaseRecord.parse(record.encode()) == record
    stale = LeaseRecord(2, record.holder, 100, time.time() - 1000)
    assert terms.seconds_left("t", stale) < 0
