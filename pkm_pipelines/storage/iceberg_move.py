"""Moving a table's files to another warehouse, so that nothing of the table but its paths is changed.

Iceberg writes absolute paths into its metadata, manifest lists, manifests and files of deletes by position. A table
that is moved is therefore copied: data files byte by byte, everything that names a path written again with the new
one. Snapshots keep their ids, sequence numbers, times and summaries (with them the watermarks), and branches and tags
their names; the log of older metadata files is left behind, for it is a list of files of the old warehouse.

Every name follows from the old one, so a copy that was interrupted goes on: a file that is there in full is not copied
again. Nothing is registered here, and nothing is deleted: until the catalog points to the copy, it is not a table.

Source: https://iceberg.apache.org/spec/ (file paths, position delete files, table metadata).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from posixpath import basename
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.conversions import to_bytes
from pyiceberg.io import FileIO, InputFile
from pyiceberg.manifest import DataFileContent, ManifestEntryStatus
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Table
from pyiceberg.types import StringType

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.model.progress import Progress
from pkm_pipelines.storage.iceberg_avro import Row, read_rows, rewrite
from pkm_pipelines.storage.iceberg_catalog import warehouse_path
from pkm_pipelines.storage.iceberg_deletes import PATH_ID
from pkm_pipelines.storage.location import Location

CHUNK_BYTES = 8 << 20
THREADS = 4
_PLACES = ("write.data.path", "write.metadata.path", "write.folder-storage.path", "write.object-storage.path")
_SCHEMES = {"s3a": "s3", "s3n": "s3"}

T = TypeVar("T")


@dataclass
class Copied:
    """What was copied of a table: its new metadata file, and how much there is of the rest.

    `data` are the data files, old URL to new one; `hashes` the SHA-256 of those that were read here; `copied_files`
    were not there yet.
    """

    metadata_location: str = ""
    files: int = 0
    bytes: int = 0
    copied_files: int = 0
    copied_bytes: int = 0
    data: dict[str, str] = field(default_factory=dict[str, str])
    hashes: dict[str, str] = field(default_factory=dict[str, str])


class Paths:
    """Where each file of one table goes.

    What lies below the table's location keeps its place there; anything else (a table may have been registered with
    files of another engine elsewhere) goes to `moved/` under a name that follows from the old one.
    """

    def __init__(self, table: Table, source: Location, target: Location) -> None:
        old, root = plain(table.metadata.location), plain(warehouse_path(source))
        name = old[len(root) + 1 :] if old.startswith(f"{root}/") else "/".join(table.name())
        self._old = f"{old}/"
        self.location = f"{warehouse_path(target)}/{name}"

    def __call__(self, path: str) -> str:
        """The new URL of a file."""
        known = plain(path)
        if known.startswith(self._old):
            return f"{self.location}/{known[len(self._old) :]}"
        return f"{self.location}/moved/{hashlib.sha256(known.encode()).hexdigest()[:16]}-{basename(known)}"


def plain(url: str) -> str:
    """One spelling for all ways to write a URL: a local path without scheme, S3 as `s3://`, no slash at the end."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url.removeprefix("file:").rstrip("/") or "/"
    if scheme == "file":
        return f"/{rest.lstrip('/')}".rstrip("/")
    return f"{_SCHEMES.get(scheme, scheme)}://{rest}".rstrip("/")


def measure(table: Table) -> tuple[int, int]:
    """How many files all snapshots of a table have together, and their bytes; all but its metadata file."""
    sizes: dict[str, int] = {}
    manifests: dict[str, int] = {}
    for snapshot in table.metadata.snapshots:
        listed = table.io.new_input(snapshot.manifest_list)
        sizes[snapshot.manifest_list] = len(listed)
        manifests |= {row["manifest_path"]: row["manifest_length"] for row in read_rows(listed)}
    for manifest in manifests:
        for row in read_rows(table.io.new_input(manifest)):
            if row["status"] != ManifestEntryStatus.DELETED.value:
                sizes[row["data_file"]["file_path"]] = row["data_file"]["file_size_in_bytes"]
    statistics = [*table.metadata.statistics, *table.metadata.partition_statistics]
    sizes |= {one.statistics_path: one.file_size_in_bytes for one in statistics}
    return len(sizes) + len(manifests), sum(sizes.values()) + sum(manifests.values())


class TableCopy:
    """The copy of one table in another warehouse. Asked again as the table goes on, it copies what is new."""

    def __init__(self, source: Location, target: Location, target_io: FileIO, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._io = target_io
        self._progress = progress
        self._counting = threading.Lock()
        self.result = Copied()

    def copy(self, table: Table) -> Copied:
        """Copy every file that any snapshot of `table` can reach, as it is now.

        Raises `FileNotFoundError` if a file went meanwhile (the table was expired: load it and ask again), `StoreError`
        for what cannot be moved, and `CancelledError` between files.
        """
        paths = Paths(table, self._source, self._target)
        before = self.result
        self.result = Copied(data=before.data, hashes=before.hashes)
        raw = read_metadata(table.io, table.metadata_location)
        manifests: dict[str, int] = {}
        lists: dict[str, str] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            for snapshot in raw.get("snapshots", ()):
                if "manifest-list" not in snapshot:
                    raise StoreError(
                        f"table {'.'.join(table.name())}: its snapshot {snapshot['snapshot-id']} has no manifest list "
                        "(Iceberg 1); rewrite the table with the engine that made it"
                    )
                source = snapshot["manifest-list"]
                for row in read_rows(table.io.new_input(source)):
                    path = row["manifest_path"]
                    if path not in manifests:
                        manifests[path] = self._copy_manifest(table, path, paths, pool)
                lists[source] = self._rewrite(table, source, paths, lambda row: _point(row, paths, manifests))
            statistics = [*raw.get("statistics", ()), *raw.get("partition-statistics", ())]
            _each(pool, lambda one: self._copy_file(table.io, one["statistics-path"], paths), statistics)
        target = paths(table.metadata_location).replace(".gz.metadata.json", ".metadata.json")
        moved = json.dumps(_moved_metadata(raw, paths, lists)).encode()
        with self._io.new_output(target).create(overwrite=True) as stream:
            stream.write(moved)
        self.result.metadata_location = target
        return self.result

    def table(self, like: Table) -> Table:
        """The copy as a table that can be read; it is in no catalog."""
        location = self.result.metadata_location
        metadata = FromInputFile.table_metadata(self._io.new_input(location))
        return Table(like.name(), metadata, location, self._io, like.catalog)

    def _copy_manifest(self, table: Table, path: str, paths: Paths, pool: ThreadPoolExecutor) -> int:
        """Copy what a manifest lists, and write the manifest; returns its new length."""
        self._progress.check_cancelled()
        deletes: list[Row] = []
        others: list[str] = []
        for row in read_rows(table.io.new_input(path)):
            if row["status"] == ManifestEntryStatus.DELETED.value:
                continue  # its file may be gone; whoever still has it lists it elsewhere
            if row["data_file"]["content"] == DataFileContent.POSITION_DELETES.value:
                deletes.append(row["data_file"])
            else:
                others.append(row["data_file"]["file_path"])
        _each(
            pool, lambda file: self._copy_data(table.io, file, paths), [p for p in others if p not in self.result.data]
        )
        written = dict(
            _each(pool, lambda file: (file["file_path"], self._copy_deletes(table.io, file, paths)), deletes)
        )
        self._progress.advance(len(others) + len(deletes))

        def change(row: Row) -> None:
            file = row["data_file"]
            old = file["file_path"]
            file["file_path"] = paths(old)
            if file["referenced_data_file"] is not None:
                file["referenced_data_file"] = paths(file["referenced_data_file"])
            if (known := written.get(old)) is not None:
                known.describe(file)

        return len(self._io.new_input(self._rewrite(table, path, paths, change)))

    def _rewrite(self, table: Table, path: str, paths: Paths, change: Callable[[Row], None]) -> str:
        target = paths(path)
        size = rewrite(table.io.new_input(path), self._io.new_output(target), change)
        self._count(size, new=True)
        return target

    def _copy_data(self, io: FileIO, path: str, paths: Paths) -> None:
        self._copy_file(io, path, paths)
        self.result.data[path] = paths(path)

    def _copy_file(self, io: FileIO, path: str, paths: Paths) -> None:
        """Copy a file byte by byte unless it is there in full."""
        self._progress.check_cancelled()
        source, target = io.new_input(path), paths(path)
        size = len(source)
        there = self._io.new_input(target)
        is_new = not (there.exists() and len(there) == size)
        if is_new:
            digest = hashlib.sha256()
            with self._io.new_output(target).create(overwrite=True) as stream:
                for chunk in _chunks(source):
                    digest.update(chunk)
                    stream.write(chunk)
            self.result.hashes[path] = digest.hexdigest()
        self._count(size, new=is_new)

    def _copy_deletes(self, io: FileIO, file: Row, paths: Paths) -> _DeleteFile:
        """Write a file of deletes by position again, with the new paths of the data files in it."""
        path = file["file_path"]
        if str(file["file_format"]).upper() != "PARQUET":
            raise StoreError(
                f"{path}: deletes by position in the format {file['file_format']} cannot be moved; compact the table "
                "first, so that it has none"
            )
        with io.new_input(path).open() as stream:
            rows = pq.ParquetFile(stream).read()
        column = rows.schema.get_field_index("file_path")
        stored = rows.schema.field(column)
        old = rows["file_path"].combine_chunks().dictionary_encode()
        new = pa.DictionaryArray.from_arrays(
            old.indices, pa.array([paths(name) for name in old.dictionary.to_pylist()], pa.string())
        )
        moved = rows.set_column(column, stored.with_type(pa.string()), new.cast(pa.string()))
        moved = moved.sort_by([("file_path", "ascending"), ("pos", "ascending")])
        target = paths(path)
        with self._io.new_output(target).create(overwrite=True) as stream:
            with pq.ParquetWriter(stream, moved.schema, compression="zstd") as writer:
                writer.write_table(moved)
            size = stream.tell()
        self._count(size, new=True)
        names = moved["file_path"]
        return _DeleteFile(size, names[0].as_py(), names[-1].as_py()) if len(names) else _DeleteFile(size)

    def _count(self, size: int, *, new: bool) -> None:
        with self._counting:
            self.result.files += 1
            self.result.bytes += size
            if new:
                self.result.copied_files += 1
                self.result.copied_bytes += size


@dataclass(frozen=True)
class _DeleteFile:
    """What a manifest says of a delete file that was written again."""

    size: int
    first: str | None = None
    last: str | None = None

    def describe(self, file: Row) -> None:
        """Bounds of the paths are exact here: those of the old file may have been cut short, or be absent."""
        file["file_size_in_bytes"] = self.size
        file["split_offsets"] = None
        file["column_sizes"] = None
        if self.first is not None and self.last is not None:
            file["lower_bounds"] = {**(file["lower_bounds"] or {}), PATH_ID: to_bytes(StringType(), self.first)}
            file["upper_bounds"] = {**(file["upper_bounds"] or {}), PATH_ID: to_bytes(StringType(), self.last)}


def read_metadata(io: FileIO, location: str) -> dict[str, Any]:
    """A metadata file as JSON, with everything that stands in it; raises `StoreError` if it is none."""
    with io.new_input(location).open() as stream:
        data = stream.read()
    try:
        found = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (ValueError, OSError, EOFError) as error:
        raise StoreError(f"{location}: is no metadata file of Iceberg: {error}") from None
    if not isinstance(found, dict) or "table-uuid" not in found or "location" not in found:
        raise StoreError(f"{location}: is no metadata file of Iceberg")
    return found


def hash_file(file: InputFile) -> str:
    """The SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    for chunk in _chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def _moved_metadata(raw: Mapping[str, Any], paths: Paths, lists: Mapping[str, str]) -> dict[str, Any]:
    moved = {**raw, "location": paths.location, "metadata-log": []}
    moved["properties"] = {key: value for key, value in raw.get("properties", {}).items() if key not in _PLACES}
    moved["snapshots"] = [
        {**snapshot, "manifest-list": lists[snapshot["manifest-list"]]} for snapshot in raw.get("snapshots", ())
    ]
    for kind in ("statistics", "partition-statistics"):
        if kind in raw:
            moved[kind] = [{**one, "statistics-path": paths(one["statistics-path"])} for one in raw[kind]]
    return moved


def _point(row: Row, paths: Paths, lengths: Mapping[str, int]) -> None:
    old = row["manifest_path"]
    row["manifest_path"] = paths(old)
    row["manifest_length"] = lengths[old]


def _chunks(file: InputFile) -> Iterator[bytes]:
    with file.open(seekable=False) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _each(pool: ThreadPoolExecutor, do: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Do it for each item, a few at a time; the first error is raised when all have ended."""
    futures = [pool.submit(do, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def target_io(catalog: Catalog, target: Location) -> FileIO:
    """The files of another warehouse than the catalog's own."""
    from pyiceberg.io import load_file_io

    reach = {} if target.is_local else target.s3().pyiceberg()
    return load_file_io({**catalog.properties, "warehouse": warehouse_path(target), **reach}, warehouse_path(target))
