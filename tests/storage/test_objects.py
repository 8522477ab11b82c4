"""Content-addressed objects, on local disk and on S3 alike."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import obstore
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkm_pipelines.model.errors import CorruptObjectError, ObjectNotFoundError, StoreError
from pkm_pipelines.storage.endpoint import open_store
from pkm_pipelines.storage.location import Location
from pkm_pipelines.storage.objects import SMALL_BYTES, ObjectStore

MIB = 1 << 20


@pytest.fixture
def objects(store_location: Location) -> ObjectStore:
    return ObjectStore(store_location)


def paths(location: Location, prefix: str = "") -> list[str]:
    return sorted(entry["path"] for page in open_store(location).list(prefix) for entry in page)


def chunks(size: int, chunk: int = MIB) -> Iterator[bytes]:
    for start in range(0, size, chunk):
        yield bytes([start // chunk % 251]) * min(chunk, size - start)


@pytest.mark.parametrize("data", [b"", b"a note", bytes(range(256)) * 1000])
def test_what_is_put_is_got(objects: ObjectStore, store_location: Location, data: bytes) -> None:
    sha = hashlib.sha256(data).hexdigest()
    assert not objects.exists(sha)
    assert objects.put(data) == sha
    assert objects.put(data) == sha
    assert objects.exists(sha)
    assert objects.get(sha) == data
    assert b"".join(objects.open(sha)) == data
    assert paths(store_location) == [f"blobs/sha256/{sha[:2]}/{sha[2:4]}/{sha}"]


@pytest.mark.parametrize("size", [0, 5, SMALL_BYTES, SMALL_BYTES + 1, 3 * SMALL_BYTES + 7])
def test_a_stream_is_stored_under_its_hash(objects: ObjectStore, store_location: Location, size: int) -> None:
    data = b"".join(chunks(size))
    sha = hashlib.sha256(data).hexdigest()
    assert objects.put_stream(chunks(size)) == (sha, size)
    assert objects.put_stream(chunks(size)) == (sha, size)
    assert objects.get(sha) == data
    assert b"".join(objects.open(sha)) == data
    assert paths(store_location, "uploads/") == []


def test_a_stream_is_bounded_in_memory(objects: ObjectStore) -> None:
    process = psutil.Process()
    objects.put_stream(chunks(9 * MIB))
    before, peak = process.memory_info().rss, 0

    def watched(chunks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal peak
        for chunk in chunks:
            peak = max(peak, process.memory_info().rss)
            yield chunk

    sha, size = objects.put_stream(watched(chunks(192 * MIB)))
    assert size == sum(len(chunk) for chunk in watched(objects.open(sha))) == 192 * MIB
    assert peak - before < 96 * MIB


@pytest.mark.parametrize("size", [5 * MIB, 40 * MIB])
def test_too_long_a_stream_stores_nothing(objects: ObjectStore, store_location: Location, size: int) -> None:
    with pytest.raises(StoreError, match="more than 4194304 bytes"):
        objects.put_stream(chunks(size), max_bytes=4 * MIB)
    with pytest.raises(StoreError, match="more than 31457280 bytes"):
        objects.put_stream(chunks(40 * MIB), max_bytes=30 * MIB)
    assert paths(store_location) == []
    assert objects.put_stream(chunks(size), max_bytes=size)[1] == size


def test_a_source_that_fails_leaves_nothing_and_says_why(objects: ObjectStore, store_location: Location) -> None:
    def failing(after: int) -> Iterator[bytes]:
        yield from chunks(after)
        raise FileNotFoundError("the unplugged disk")

    for after in (MIB, 30 * MIB):
        with pytest.raises(FileNotFoundError, match="unplugged"):
            objects.put_stream(failing(after))
    assert paths(store_location) == []


def test_many_may_put_the_same_at_once(objects: ObjectStore, store_location: Location) -> None:
    with ThreadPoolExecutor(8) as pool:
        small = set(pool.map(lambda _: objects.put(b"same"), range(16)))
        large = set(pool.map(lambda _: objects.put_stream(chunks(9 * MIB)), range(4)))
    assert len(small) == len(large) == 1
    assert len(paths(store_location)) == 2
    assert len(objects.get(large.pop()[0])) == 9 * MIB


def test_what_is_not_there_is_missed(objects: ObjectStore) -> None:
    sha = "0" * 64
    for ask in (lambda: objects.get(sha), lambda: list(objects.open(sha))):
        with pytest.raises(ObjectNotFoundError, match=sha):
            ask()
    objects.delete(sha)


@pytest.mark.parametrize("sha", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "é" * 64])
def test_a_hash_is_a_hash(objects: ObjectStore, sha: str) -> None:
    for ask in (objects.get, objects.exists, objects.delete, lambda sha: list(objects.open(sha))):
        with pytest.raises(StoreError, match="no SHA-256"):
            ask(sha)


def test_corruption_is_found_on_read(objects: ObjectStore, store_location: Location) -> None:
    sha = objects.put(b"what was stored")
    (path,) = paths(store_location)
    obstore.put(open_store(store_location), path, b"what was st0red")
    with pytest.raises(CorruptObjectError, match=sha):
        objects.get(sha)
    with pytest.raises(CorruptObjectError, match=sha):
        list(objects.open(sha))


def test_a_blob_that_was_cut_off_is_healed_by_the_next_put(objects: ObjectStore, store_location: Location) -> None:
    large = b"".join(chunks(9 * MIB))
    for data, put in ((b"data", lambda: objects.put(b"data")), (large, lambda: objects.put_stream(chunks(9 * MIB))[0])):
        sha = put()
        obstore.put(open_store(store_location), f"blobs/sha256/{sha[:2]}/{sha[2:4]}/{sha}", b"")
        with pytest.raises(CorruptObjectError):
            objects.get(sha)
        assert put() == sha
        assert objects.get(sha) == data


def test_hashes_lists_and_delete_removes(objects: ObjectStore) -> None:
    shas = {objects.put(b"%d" % n) for n in range(20)}
    assert set(objects.hashes()) == shas
    gone = shas.pop()
    objects.delete(gone)
    assert set(objects.hashes()) == shas
    assert not objects.exists(gone)


def test_sweep_removes_uploads_that_were_left(objects: ObjectStore, store_location: Location) -> None:
    sha = objects.put(b"kept")
    obstore.put(open_store(store_location), "uploads/0123", b"left by a killed process")
    if store_location.is_local:
        (store_location.path / "uploads" / "4567#1").write_bytes(b"half a file")
    assert objects.sweep() == 0
    assert objects.sweep(dt.timedelta(seconds=-5)) == (2 if store_location.is_local else 1)
    assert objects.sweep(dt.timedelta(seconds=-5)) == 0
    assert objects.get(sha) == b"kept"


def test_an_unreachable_endpoint_is_named(monkeypatch: pytest.MonkeyPatch, s3_endpoint: object) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"s3://nowhere/x: cannot be written to") as caught:
        ObjectStore(Location("s3://nowhere/x")).put(b"")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(data=st.binary(max_size=100_000), cuts=st.lists(st.integers(0, 100_000), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_any_split_makes_the_same_blob(objects: ObjectStore, data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert objects.put_stream(iter(pieces)) == (objects.put(data), len(data))
