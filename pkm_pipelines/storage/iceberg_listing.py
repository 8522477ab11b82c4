"""The files that lie in a table's location, and which of them the table refers to.

Names are compared as the file system has them, by the same function of pyiceberg that opens them: one file may be
`file:///a` here and `/a` there. What is referred to is kept as sorted 64-bit hashes: ten million files take 80 MB, and
two files with one hash, should there ever be any, make one of them stay and none go.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pyarrow.fs import FileSelector, FileSystem, FileType
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.iceberg_manifests import manifests_of


@dataclass(frozen=True)
class StoredFile:
    """A file as it lies in the store; `path` is the file system's."""

    path: str
    size: int
    modified_at: dt.datetime


class TableFolder:
    """The folder or prefix that is a table's location; folders of `others` inside it are not looked into."""

    def __init__(self, table: Table, others: Collection[str] = ()) -> None:
        if not isinstance(table.io, PyArrowFileIO):
            raise StoreError(f"table {'.'.join(table.name())}: files of {type(table.io).__name__} cannot be listed")
        self._scheme, host, self.root = _parse(table.io, table.location())
        if len(self.root.strip("/").split("/")) < 2:
            raise StoreError(
                f"{table.location()} is the whole of a store and no table's folder; nothing is listed in it"
            )
        self._files: FileSystem = table.io.fs_by_scheme(self._scheme, host)
        self._others = {_parse(table.io, other)[2].rstrip("/") for other in others} - {self.root.rstrip("/")}

    def files(self) -> Iterator[StoredFile]:
        """Every file in it; one folder is held at a time."""
        folders = [self.root]
        while folders:
            for found in self._files.get_file_info(FileSelector(folders.pop(), recursive=False, allow_not_found=True)):
                if found.type == FileType.Directory:
                    if found.path.rstrip("/") not in self._others:
                        folders.append(found.path)
                elif found.type == FileType.File:
                    modified = found.mtime or dt.datetime.now(dt.UTC)
                    yield StoredFile(found.path, found.size or 0, modified.astimezone(dt.UTC))

    def url(self, path: str) -> str:
        """The URL of a file that `files` has listed."""
        return path if path.startswith("/") else f"{self._scheme}://{path}"

    def delete(self, path: str) -> None:
        """Delete a file that `files` has listed."""
        if not path.startswith(self.root.rstrip("/") + "/"):
            raise StoreError(f"{path} does not lie in {self.root}; it is not deleted")
        self._files.delete_file(path)


class References:
    """The files that some snapshots of a table, and its metadata, refer to."""

    def __init__(self, table: Table, snapshots: Sequence[Snapshot]) -> None:
        self._io = table.io
        self._hashes = np.unique(np.fromiter((_hash(path) for path in self._paths(table, snapshots)), np.uint64))

    def __contains__(self, path: str) -> bool:
        """Whether a file, by the file system's path, is referred to."""
        wanted = _hash(path)
        position = np.searchsorted(self._hashes, np.uint64(wanted))
        return bool(position < len(self._hashes) and int(self._hashes[position]) == wanted)

    def _paths(self, table: Table, snapshots: Iterable[Snapshot]) -> Iterator[str]:
        metadata = table.metadata
        yield self._path(table.metadata_location)
        yield from (self._path(entry.metadata_file) for entry in metadata.metadata_log)
        yield from (self._path(str(f.statistics_path)) for f in (*metadata.statistics, *metadata.partition_statistics))
        manifests: dict[str, ManifestFile] = {}
        for snapshot in snapshots:
            yield self._path(snapshot.manifest_list)
            manifests |= {manifest.manifest_path: manifest for manifest in manifests_of(table, snapshot)}
        for path, manifest in manifests.items():
            yield self._path(path)
            # Read past the memory for manifests: all of them, once, would only push out what is in use.
            for entry in manifest.fetch_manifest_entry(self._io, discard_deleted=True):
                yield self._path(entry.data_file.file_path)

    def _path(self, url: str) -> str:
        return _parse(self._io, url)[2]


def store_path(io: FileIO, url: str) -> str:
    """A file's path as its file system has it."""
    return _parse(io, url)[2]


def _parse(io: FileIO, url: str) -> tuple[str, str, str]:
    return PyArrowFileIO.parse_location(url, io.properties)


def _hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest())
