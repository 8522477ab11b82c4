"""The place behind a URL as a store of plain objects, and whether it can be trusted with conditional writes.

State, warehouse and objects all rest on one promise of the endpoint: of two conditional creates of one key, the
second is refused (`If-None-Match: *`, RFC 9110, section 13.1.2). Some S3 servers ignore the header, and then
writers overwrite each other while every one of them reports success. So each process asks once, before first use.
"""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from typing import TYPE_CHECKING

from pkm_pipelines.model.errors import StoreError, UnsafeEndpointError
from pkm_pipelines.storage.location import Location

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

    PlainStore = LocalStore | S3Store

_probed: set[tuple[str, str | None]] = set()
_probing = threading.Lock()


def open_store(location: Location) -> PlainStore:
    """The location as a store of objects whose paths start below it; a local folder is made if absent.

    Raises `SettingsError` when S3 has no credentials, `StoreError` when the folder cannot be made.
    """
    from obstore.exceptions import BaseError
    from obstore.store import LocalStore, S3Store

    try:
        if location.is_local:
            return LocalStore(location.path, mkdir=True)
        return S3Store(
            location.bucket,
            prefix=location.prefix or None,
            config=location.s3().object_store(),  # pyright: ignore[reportArgumentType] (a dict of these very keys)
            client_options={"connect_timeout": "5s", "timeout": "60s"},
            retry_config={"max_retries": 5, "retry_timeout": dt.timedelta(seconds=60)},
        )
    except (BaseError, OSError) as error:
        raise StoreError(f"{location.url}: cannot be opened: {first_line(error)}") from error


def probe(location: Location) -> None:
    """Refuse an endpoint that ignores conditional creates; the answer is remembered for this process.

    Raises `UnsafeEndpointError` if the second of two conditional creates of one key succeeds, and `StoreError`
    if the endpoint cannot be reached or does not allow writing.
    """
    place = _endpoint_of(location)
    with _probing:
        if place not in _probed:
            _probe(location)
            _probed.add(place)


def first_line(error: BaseException) -> str:
    """What an obstore error says first; the rest is a dump of the request."""
    return str(error).strip().partition("\n")[0]


def _endpoint_of(location: Location) -> tuple[str, str | None]:
    if location.is_local:
        return location.url, None
    return f"s3://{location.bucket}", location.s3().endpoint


def _probe(location: Location) -> None:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError

    store = open_store(location)
    key = f".probe-{uuid.uuid4().hex}"
    try:
        obstore.put(store, key, b"first", mode="create", use_multipart=False)
        try:
            obstore.put(store, key, b"second", mode="create", use_multipart=False)
        except AlreadyExistsError:
            return
        finally:
            obstore.delete(store, key)
    except FileNotFoundError:
        raise StoreError(f"{location.url}: there is no bucket {location.bucket!r} at this endpoint") from None
    except (BaseError, OSError) as error:
        raise StoreError(f"{location.url}: cannot be written to: {first_line(error)}") from error
    raise UnsafeEndpointError(
        f"{location.url}: the endpoint ignores conditional writes (a second create of one key succeeded) and would "
        "lose data without a word; use one that honours If-None-Match, such as AWS S3, Cloudflare R2, MinIO or Ceph"
    )
