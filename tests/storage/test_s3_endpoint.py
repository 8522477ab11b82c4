"""The endpoint that the other tests stand on honours conditions, also when many ask at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from pkm_pipelines.storage.location import Location
from tests.support.s3 import S3Endpoint


def test_only_one_of_many_conditional_creates_wins(s3_endpoint: S3Endpoint) -> None:
    location = s3_endpoint.location()
    store = S3Store(location.bucket, prefix=location.prefix, config=location.s3().object_store())

    def create(data: bytes) -> bool:
        try:
            obstore.put(store, "one", data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            won = list(pool.map(create, [b"%d" % n for n in range(8)]))
            assert sum(won) == 1
            obstore.delete(store, "one")


def test_a_location_is_fresh_each_time(store_location: Location) -> None:
    assert not store_location.is_local or not store_location.path.exists()
    assert store_location.is_local or store_location.prefix == "some/lake"
