"""The life of the state service: started once, killed at any moment, replaced, fenced, and guarded."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import flight

from pkm_pipelines.model.errors import SettingsError, StateUnavailableError, StoreError
from pkm_pipelines.model.records import Mutation
from pkm_pipelines.settings import StateSettings
from pkm_pipelines.storage import slate_connection, slate_place
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.slate import Database
from pkm_pipelines.storage.slate_client import State
from pkm_pipelines.storage.slate_place import PROTOCOL, ServicePlace
from tests.support.proxy import Proxy
from tests.support.s3 import S3Endpoint
from tests.support.state import OpenState, Service, Worker, services

SECRET = "correct horse battery staple"


@pytest.fixture
def location(work: Path) -> Location:
    return Location((work / "state").as_uri())


@pytest.fixture
def shared(location: Location, work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service for other hosts."""
    monkeypatch.setenv("PKM_STATE_TOKEN", SECRET)
    service = Service(location, work / "run", "--listen=grpc+tcp://127.0.0.1:0")
    yield service
    service.end()


def eventually(done: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# Starting and going


def test_many_clients_at_once_start_one_service(location: Location, work: Path) -> None:
    workers = [Worker(location, work / "run", "info") for _ in range(8)]
    try:
        for worker in workers:
            assert worker.next() == "ready"
        for worker in workers:
            worker.go()
        assert len({worker.next()["pid"] for worker in workers}) == 1
        assert len(services(work / "run")) == 1
    finally:
        for worker in workers:
            worker.kill()
        for pid in services(work / "run"):
            os.kill(pid, signal.SIGKILL)


def test_of_services_that_race_one_stays(location: Location, work: Path, open_state: OpenState) -> None:
    racing = [Service(location, work / "run") for _ in range(4)]
    try:
        assert [service.answer().get("ready") for service in racing] == [True] * 4
        eventually(lambda: sum(service.process.poll() is None for service in racing) == 1)
        assert sorted(str(service.process.poll()) for service in racing) == ["0", "0", "0", "None"]
        (winner,) = (service.process.pid for service in racing if service.process.poll() is None)
        assert open_state(location).info()["pid"] == winner
    finally:
        for service in racing:
            service.end()


def test_it_outlives_its_first_client_and_goes_when_idle(location: Location, work: Path, open_state: OpenState) -> None:
    worker = Worker(location, work / "run", "put", "k:")
    assert worker.next() == 0
    worker.kill()
    state = open_state(location)
    first = state.info()["pid"]
    assert state.get("k:000000") == b"0"
    state.stop_service()

    state = open_state(location, idle_seconds=0.5)
    second = state.info()["pid"]
    assert second != first
    for _ in range(10):
        time.sleep(0.1)
        assert state.info()["pid"] == second
    eventually(lambda: not services(work / "run"), 5)
    assert not list((work / "run").glob("*.sock"))
    assert state.get("k:000000") == b"0"
    assert state.info()["pid"] not in (first, second)


def test_a_service_that_is_told_to_go_loses_nothing(location: Location, work: Path, open_state: OpenState) -> None:
    state = open_state(location)
    for turn in range(3):
        state.put(f"k:{turn}", b"x")
        (pid,) = services(work / "run")
        os.kill(pid, signal.SIGTERM)
    assert [key for key, _ in state.scan("k:")] == ["k:0", "k:1", "k:2"]
    state.stop_service()
    state.stop_service()
    assert services(work / "run") == []


def test_a_reader_that_sleeps_does_not_keep_the_next_service_waiting(
    location: Location, work: Path, open_state: OpenState
) -> None:
    state, other = open_state(location), open_state(location)
    state.apply([Mutation(f"k:{n:04d}", bytes(20_000)) for n in range(750)])
    sleeping = state.scan("k:")
    next(sleeping)
    (pid,) = services(work / "run")
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: other.info()["pid"] != pid, 15)
    assert other.get("k:0000") == bytes(20_000)
    assert sum(1 for _ in sleeping) == 749


def test_a_stale_socket_is_replaced(location: Location, work: Path, open_state: OpenState) -> None:
    state = open_state(location)
    state.put("a", b"1")
    (pid,) = services(work / "run")
    os.kill(pid, signal.SIGKILL)
    assert list((work / "run").glob("*.sock"))
    assert state.get("a") == b"1"


# Losing nothing


def test_killed_under_load_nothing_is_lost_or_done_twice(
    store_location: Location, work: Path, open_state: OpenState, budget: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    times, kills = 100 * budget, 3 * budget
    adders = [Worker(store_location, work / "run", "increment", "counter", times) for _ in range(3)]
    putter = Worker(store_location, work / "run", "put", "acknowledged:")
    for worker in adders:
        assert worker.next() == "ready"
    for worker in adders:
        worker.go()

    def kill() -> None:
        for _ in range(kills):
            time.sleep(chance.uniform(0.05, 0.6))
            for pid in services(work / "run"):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    for worker in adders:
        while not isinstance(worker.next(), dict):
            pass
    killer.join()
    state = open_state(store_location)
    assert state.get("counter") == b"%d" % (3 * times)
    acknowledged = putter.kill()
    kept = [int(value) for _, value in state.scan("acknowledged:")]
    assert acknowledged == list(range(len(acknowledged)))
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) <= len(acknowledged) + 1


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
@pytest.mark.parametrize("change", ["put", "cas", "apply", "lsns", "acquire"])
def test_a_change_whose_answer_was_lost_is_done_once(
    location: Location, work: Path, open_state: OpenState, shared: Service, change: str, killed: bool
) -> None:
    proxy = Proxy(shared.port)
    state = open_state(location, service=f"grpc+tcp://127.0.0.1:{proxy.port}")
    direct = open_state(location, service=f"grpc+tcp://127.0.0.1:{shared.port}")
    state.put("counter", b"1")
    before = direct.next_lsns(1).start
    answers: list[object] = []
    ask: dict[str, Callable[[], object]] = {
        "put": lambda: state.put("counter", b"2"),
        "cas": lambda: state.cas("counter", b"1", b"2"),
        "apply": lambda: state.apply([Mutation("counter", b"2"), Mutation("other", b"1")]),
        "lsns": lambda: state.next_lsns(1000).start,
        "acquire": lambda: state.acquire("t", ttl_seconds=60).token,
    }
    landed: dict[str, Callable[[], bool]] = {
        "lsns": lambda: direct.next_lsns(1).start > before + 1000,
        "acquire": lambda: direct.get("lock:t") is not None,
    }
    proxy.keep_answers()
    asking = threading.Thread(target=lambda: answers.append(ask[change]()))
    asking.start()
    eventually(landed.get(change, lambda: direct.get("counter") == b"2"))
    if change in ("put", "cas", "apply"):
        direct.put("counter", b"3")  # done twice, the change would undo this, or a cas say False
    if killed:
        shared.end()
        shared = Service(location, work / "run", "--listen=grpc+tcp://127.0.0.1:0")
        proxy.target = shared.port
        direct = open_state(location, service=f"grpc+tcp://127.0.0.1:{shared.port}")
    proxy.cut()
    asking.join(20)
    after = direct.next_lsns(1).start
    if change == "lsns":
        assert isinstance(answers[0], int)
        assert before < answers[0] < before + 100  # those of the first time
        assert after < before + 2000
    elif change == "acquire":
        assert answers[0] == before + 1
        assert f'"token":{answers[0]},'.encode() in (direct.get("lock:t") or b"")
        assert after == before + 2
    else:
        assert answers == [True if change == "cas" else None]
        assert direct.get("counter") == b"3"
    proxy.close()
    shared.end()


def test_a_scan_goes_on_after_the_line_was_cut(location: Location, open_state: OpenState, shared: Service) -> None:
    proxy = Proxy(shared.port)
    state = open_state(location, service=f"grpc+tcp://127.0.0.1:{proxy.port}")
    rows = [(f"k:{n:05d}", bytes(2000)) for n in range(8000)]
    state.apply([Mutation(*row) for row in rows])
    reading = state.scan("k:")
    seen = [next(reading)]
    proxy.cut()
    seen += reading
    assert seen == rows
    proxy.close()


def test_a_fenced_service_ends_and_clients_go_on(store_location: Location, work: Path, open_state: OpenState) -> None:
    state = open_state(store_location)
    state.put("a", b"1")
    first = state.info()["pid"]

    async def take_over() -> None:
        intruder = await Database.open(store_location)
        assert await intruder.get("a") == b"1"
        state.put("a", b"2")  # refused by the fenced service, done by the next one
        assert intruder.lost or await becomes(lambda: intruder.lost)

    async def becomes(done: Callable[[], object]) -> bool:
        for _ in range(500):
            if done():
                return True
            await asyncio.sleep(0.01)
        return False

    asyncio.run(take_over())
    assert state.get("a") == b"2"
    assert state.info()["pid"] != first
    eventually(lambda: first not in services(work / "run"))


def test_an_idle_service_notices_that_it_was_fenced(location: Location, work: Path, open_state: OpenState) -> None:
    state = open_state(location)
    state.put("a", b"1")

    async def take_over() -> None:
        intruder = await Database.open(location)
        await asyncio.to_thread(eventually, lambda: not services(work / "run"), 5)
        await intruder.close()

    asyncio.run(take_over())
    assert state.get("a") == b"1"


def test_a_hanging_service_is_reported(
    location: Location, work: Path, monkeypatch: pytest.MonkeyPatch, open_state: OpenState
) -> None:
    monkeypatch.setattr("pkm_pipelines.storage.slate_connection.CALL_SECONDS", 0.2)
    state = open_state(location)
    state.put("a", b"1")
    state._connector._patience_seconds = 1
    (pid,) = services(work / "run")
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(StateUnavailableError, match=r"has not answered for 1 s \(log: .*\.log\)"):
        state.get("a")
    os.kill(pid, signal.SIGCONT)
    assert state.get("a") == b"1"


# Epochs


def test_a_lost_state_counts_on_above_the_old_one(store_location: Location, open_state: OpenState) -> None:
    from pkm_pipelines.storage.endpoint import open_store

    state = open_state(store_location)
    old = state.next_lsns(100)
    state.put("a", b"1")
    state.stop_service()
    store = open_store(store_location)
    store.delete([entry["path"] for page in store.list("db/") for entry in page])
    assert state.get("a") is None
    assert state.next_lsns(1).start > old.stop


def test_a_state_put_back_beside_a_newer_one_counts_above_it(work: Path, open_state: OpenState) -> None:
    import shutil

    state = open_state(Location((work / "state").as_uri()))
    state.put("a", b"1")
    state.stop_service()
    shutil.copytree(work / "state" / "db", work / "backup")
    state.begin_epoch()
    newer = state.next_lsns(100)
    state.stop_service()
    shutil.rmtree(work / "state" / "db")
    shutil.copytree(work / "backup", work / "state" / "db")
    assert state.get("a") == b"1"
    assert state.next_lsns(1).start > newer.stop


def test_a_state_is_kept_offline_while_it_is_replaced(location: Location, work: Path, open_state: OpenState) -> None:
    state, other = open_state(location), open_state(location)
    other.put("a", b"1")
    answers: list[object] = []
    with state.offline():
        assert services(work / "run") == []
        asking = threading.Thread(target=lambda: answers.append(other.get("a")))
        asking.start()
        time.sleep(0.5)
        assert services(work / "run") == []
        assert answers == []
    asking.join(20)
    assert answers == [b"1"]


# Guarding


def test_the_socket_is_the_users_alone(location: Location, work: Path, open_state: OpenState) -> None:
    open_state(location).put("a", b"1")
    assert stat.S_IMODE((work / "run").stat().st_mode) == 0o700
    for file in (work / "run").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_a_runtime_folder_that_others_can_enter_is_refused(
    location: Location, work: Path, open_state: OpenState
) -> None:
    (work / "run").mkdir()
    (work / "run").chmod(0o755)
    with pytest.raises(StateUnavailableError, match="chmod 700"):
        open_state(location).get("a")
    (work / "run").rmdir()
    (work / "theirs").mkdir(mode=0o700)
    (work / "run").symlink_to(work / "theirs")
    with pytest.raises(StateUnavailableError, match="must be a folder that belongs to you"):
        open_state(location).get("a")


@pytest.mark.parametrize("name", ["x" * 100, "with#hash", "100%"])
def test_a_runtime_folder_that_no_socket_fits_in_is_refused(location: Location, work: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="runtime_dir"):
        State.connect(location, StateSettings(), work / name)


def test_one_place_has_one_name(work: Path, s3_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "real").mkdir()
    (work / "link").symlink_to(work / "real")
    real, link = (Location((work / name / "state").as_uri()) for name in ("real", "link"))
    assert ServicePlace.of(real, work) == ServicePlace.of(link, work)
    bucket = Location("s3://bucket/state")
    name = ServicePlace.of(bucket, work).name
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.example")
    assert ServicePlace.of(bucket, work).name != name


def test_a_shared_service_wants_its_token(
    location: Location, open_state: OpenState, shared: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"grpc+tcp://127.0.0.1:{shared.port}"
    open_state(location, service=address).put("a", b"1")
    for wrong in (SECRET + "x", SECRET[:-1], SECRET.upper()):
        monkeypatch.setenv("PKM_STATE_TOKEN", wrong)
        intruder = open_state(location, service=address)
        asks: list[Callable[[State], object]] = [
            lambda state: state.get("a"),
            lambda state: state.put("a", b"2"),
            lambda state: list(state.scan("")),
        ]
        for ask in asks:
            with pytest.raises(StateUnavailableError, match="refused the token") as caught:
                ask(intruder)
            assert wrong not in str(caught.value)
    for impossible in ("", "short", "ü" * 20, SECRET + "\n"):
        monkeypatch.setenv("PKM_STATE_TOKEN", impossible)
        with pytest.raises(SettingsError, match="PKM_STATE_TOKEN"):
            open_state(location, service=address)
    bare = flight.FlightClient(address)
    with pytest.raises(flight.FlightUnauthenticatedError):
        list(bare.do_action(flight.Action("get", b"a")))
    monkeypatch.setenv("PKM_STATE_TOKEN", SECRET)
    assert open_state(location, service=address).get("a") == b"1"


def test_a_shared_service_does_not_start_without_a_token(
    location: Location, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in ("", "short"):
        monkeypatch.setenv("PKM_STATE_TOKEN", token)
        service = Service(location, work / "run", "--listen=grpc+tcp://127.0.0.1:0")
        assert service.answer()["error"] == "SettingsError"
        assert service.process.wait() != 0


def test_an_address_is_checked(location: Location, open_state: OpenState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKM_STATE_TOKEN", SECRET)
    with pytest.raises(SettingsError, match=r"state_service\.service"):
        open_state(location, service="http://elsewhere")


def test_nonsense_on_the_socket_is_refused_and_harms_nothing(
    location: Location, work: Path, open_state: OpenState
) -> None:
    state = open_state(location)
    state.put("a", b"1")
    pid = state.info()["pid"]
    client = flight.FlightClient(ServicePlace.of(location, work / "run").address)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("key", pa.int64())])) as writer:
        writer.write_batch(pa.record_batch([[1]], names=["key"]))
    other_schema = sink.getvalue().to_pybytes()
    one = b'{"session": "s", "sequence": 1, '
    nonsense = [
        ("get", b""), ("get", b"\xff"), ("get", b"k" * 70_000), ("write", b""), ("write", b"\xff" * 100),
        ("write", other_schema), ("write", other_schema[:40]), ("lsns", b"{}"), ("lsns", b"[]"), ("lsns", b"["),
        ("lsns", b"[" * 100_000), ("lsns", one + b'"count": -1}'), ("lsns", one + b'"count": 1e99}'),
        ("lsns", one + b'"count": true}'), ("lsns", b'{"session": "../x", "sequence": 1, "count": 1}'),
        ("lsns", b'{"session": "s", "sequence": 0, "count": 1}'),
        ("acquire", one + b'"name": "t", "ttl_seconds": 1}'),
        ("acquire", one + b'"name": "t", "ttl_seconds": NaN, "holder": {"host": "h", "pid": 1, "started": ""}}'),
        ("renew", one + b'"name": 1, "token": 1}'), ("nonsense", b""), ("x" * 10_000, b""),
    ]  # fmt: skip
    for action, body in nonsense:
        with pytest.raises(flight.FlightError):
            list(client.do_action(flight.Action(action, body)))
    for ticket in (b"", b"\xff", b"{}", b'{"keys": [1]}', b'{"keys": [""]}', b'{"scan": 1, "after": null, "limit": 1}'):
        with pytest.raises(flight.FlightError):
            client.do_get(flight.Ticket(ticket)).read_all()
    assert state.get("a") == b"1"
    assert state.info()["pid"] == pid


def test_a_forked_child_is_told_to_open_its_own(location: Location, open_state: OpenState) -> None:
    state = open_state(location)
    state._connector._pid -= 1
    with pytest.raises(StateUnavailableError, match="before a fork"):
        state.get("a")


def test_a_service_that_cannot_start_says_why(work: Path, open_state: OpenState) -> None:
    (work / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be"):
        open_state(Location((work / "file" / "state").as_uri())).get("a")


def test_a_client_of_replaced_code_is_told_to_start_again(
    location: Location, open_state: OpenState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look for a socket by a name that the service it starts does not have, for ever."""
    for module in (slate_connection, slate_place):
        monkeypatch.setattr(module, "PROTOCOL", PROTOCOL - 1)
    with pytest.raises(StateUnavailableError, match="the project was updated while this process ran"):
        open_state(location).get("a")
