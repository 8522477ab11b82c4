"""Content-addressed objects: the bytes of media, web pages and the like, each stored once under its SHA-256.

A blob lies at `blobs/sha256/ab/cd/<hash>`. It is created conditionally and never changed, so that any number of
writers may put the same one, and it is hashed again on every read.

Large blobs are streamed: the key is known only after the last byte, and no byte may touch the local disk of an
`s3://` lakehouse, so they are uploaded to `uploads/<random>` first (as a multipart upload on S3), and copied to their
key by the store itself. Reading the source twice instead would need a source that can be opened twice and
has not changed in between. Whoever is killed in the middle leaves an upload behind; `sweep` removes those. On S3 add
a lifecycle rule that aborts incomplete multipart uploads. A streamed blob is 5 GB at most there (one CopyObject).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import itertools
import re
import uuid
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from pkm_pipelines.model.errors import CorruptObjectError, ObjectNotFoundError, StoreError
from pkm_pipelines.storage.endpoint import first_line, open_store, probe
from pkm_pipelines.storage.location import Location

if TYPE_CHECKING:
    from pkm_pipelines.storage.endpoint import PlainStore

BLOBS, UPLOADS = "blobs/sha256", "uploads"
SMALL_BYTES = 8 << 20
READ_BYTES = 4 << 20


class ObjectStore:
    """The blobs at a location. Safe to use from many threads; nothing is contacted before the first call.

    Every method raises `UnsafeEndpointError` when the endpoint ignores conditional writes, and `StoreError` when it
    cannot be reached.
    """

    def __init__(self, location: Location) -> None:
        self._location = location

    def probe(self) -> None:
        """Refuse an endpoint that ignores conditional creates; asked once in a process."""
        probe(self._location)

    def put(self, data: bytes) -> str:
        """Store the bytes unless they are there; their SHA-256, hexadecimal."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        sha = hashlib.sha256(data).hexdigest()
        with self._errors(sha):
            try:
                obstore.put(self._store, _key(sha), data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                if self._size(sha) != len(data):  # cut off by a power failure: local files are not synced
                    obstore.put(self._store, _key(sha), data, mode="overwrite", use_multipart=False)
        return sha

    def put_stream(self, chunks: Iterable[bytes], *, max_bytes: int | None = None) -> tuple[str, int]:
        """Store what the chunks make together, in bounded memory; SHA-256 and size in bytes.

        Raises `StoreError`, and stores nothing, if it is more than `max_bytes`.
        """
        rest = _limited(chunks, max_bytes)
        head = bytearray()
        for chunk in rest:
            head += chunk
            if len(head) > SMALL_BYTES:
                break
        else:
            return self.put(bytes(head)), len(head)
        return self._put_large(itertools.chain([bytes(head)], rest))

    def get(self, sha: str) -> bytes:
        """The bytes stored under a hash.

        Raises `ObjectNotFoundError`, or `CorruptObjectError` if they do not have that hash.
        """
        import obstore

        with self._errors(sha):
            data = bytes(obstore.get(self._store, _key(sha)).bytes())
        self._verify(sha, hashlib.sha256(data).hexdigest())
        return data

    def open(self, sha: str) -> Iterator[bytes]:
        """The bytes in chunks of some megabytes.

        What they are is known at the end: then `CorruptObjectError` is raised if they do not have that hash.
        """
        import obstore

        digest = hashlib.sha256()
        with self._errors(sha):
            for chunk in obstore.get(self._store, _key(sha)).stream(min_chunk_size=READ_BYTES):
                data = bytes(chunk)
                digest.update(data)
                yield data
        self._verify(sha, digest.hexdigest())

    def exists(self, sha: str) -> bool:
        """Whether something is stored under a hash."""
        with self._errors(sha):
            return self._size(sha) is not None

    def delete(self, sha: str) -> None:
        """Remove a blob, if it is there. For retention and forgetting only: nothing else deletes."""
        import obstore

        with self._errors(sha), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, _key(sha))

    def hashes(self) -> Iterator[str]:
        """The hashes of all blobs."""
        with self._errors(BLOBS):
            for page in self._store.list(f"{BLOBS}/"):
                for entry in page:
                    yield entry["path"].rpartition("/")[2]

    def sweep(self, older_than: dt.timedelta = dt.timedelta(days=1)) -> int:
        """Remove uploads that were left unfinished; how many there were."""
        import obstore

        limit = dt.datetime.now(dt.UTC) - older_than
        if self._location.is_local:  # the store does not list files that it was still writing
            folder = self._location.path / UPLOADS
            left = (
                [path for path in folder.iterdir() if path.stat().st_mtime < limit.timestamp()]
                if folder.is_dir()
                else []
            )
            for path in left:
                path.unlink(missing_ok=True)
            return len(left)
        with self._errors(UPLOADS):
            pages = self._store.list(f"{UPLOADS}/")
            old = [entry["path"] for page in pages for entry in page if entry["last_modified"] < limit]
            for path in old:
                obstore.delete(self._store, path)
        return len(old)

    @cached_property
    def _store(self) -> PlainStore:
        self.probe()
        return open_store(self._location)

    def _put_large(self, chunks: Iterable[bytes]) -> tuple[str, int]:
        import obstore

        digest, size = hashlib.sha256(), 0
        source_error: Exception | None = None

        def watched() -> Iterator[bytes]:
            nonlocal size, source_error
            try:
                for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    yield chunk
            except Exception as error:
                source_error = error
                raise

        upload = f"{UPLOADS}/{uuid.uuid4().hex}"
        try:
            with self._errors(upload):
                obstore.put(self._store, upload, watched(), chunk_size=SMALL_BYTES, max_concurrency=2)
        except StoreError:
            if source_error is not None:
                raise source_error from None
            raise
        sha = digest.hexdigest()
        with self._errors(sha):
            if self._size(sha) == size:
                obstore.delete(self._store, upload)
            else:
                # Not conditional: whoever else writes this key writes the same bytes.
                obstore.rename(self._store, upload, _key(sha))
        return sha, size

    def _size(self, sha: str) -> int | None:
        import obstore

        try:
            return obstore.head(self._store, _key(sha))["size"]
        except FileNotFoundError:
            return None

    def _verify(self, sha: str, found: str) -> None:
        if found != sha:
            raise CorruptObjectError(
                f"{self._location.url}/{_key(sha)}: holds other bytes (their SHA-256 is {found}); delete it, and it "
                "is stored anew when its source is read again"
            )

    @contextlib.contextmanager
    def _errors(self, what: str) -> Generator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise ObjectNotFoundError(f"{self._location.url}: there is no object {what}") from None
        except BaseError as error:
            raise StoreError(f"{self._location.url}: {what}: {first_line(error)}") from error


def _key(sha: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", sha):
        raise StoreError(f"{sha[:80]!r} is no SHA-256 in hexadecimal")
    return f"{BLOBS}/{sha[:2]}/{sha[2:4]}/{sha}"


def _limited(chunks: Iterable[bytes], max_bytes: int | None) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if max_bytes is not None and size > max_bytes:
            raise StoreError(f"an object of more than {max_bytes} bytes is not stored")
        yield chunk
