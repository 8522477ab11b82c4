"""Vectors and full text in Lance: keyed tables whose every write is one version, read as of now or then.

A table is a folder `<name>.lance` below the store's location, as lancedb lays them out, so lancedb, DuckDB and
Polars read it too. Data storage version 2.2 is what all of them understand. Local disk and S3 behave alike.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import lance
import numpy as np
import pyarrow as pa
from lance.dataset import Session  # pyright: ignore[reportPrivateImportUsage] (its documented name)

from pkm_pipelines.model.errors import QueryError, SnapshotNotFoundError, StoreError, TableNotFoundError
from pkm_pipelines.model.progress import Progress
from pkm_pipelines.model.records import CommitResult, Delta
from pkm_pipelines.model.schema import TableSpec
from pkm_pipelines.storage import lance_filter as sql
from pkm_pipelines.storage import lance_index, lance_maintain
from pkm_pipelines.storage.endpoint import open_store, probe
from pkm_pipelines.storage.lance_commit import commit_delta
from pkm_pipelines.storage.lance_index import IndexReport, Recall
from pkm_pipelines.storage.lance_maintain import Removable, Run, VectorDebt
from pkm_pipelines.storage.lance_marks import read_marks
from pkm_pipelines.storage.lance_rows import MEMORY_BYTES, STAGING, StagedRows
from pkm_pipelines.storage.lance_search import SearchMode, search_dataset
from pkm_pipelines.storage.location import Location

LAYER = "vectors."
_PRIMARY_KEY = b"lance-schema:unenforced-primary-key"
_STORAGE_VERSION = "2.2"
INDEX_CACHE_BYTES, METADATA_CACHE_BYTES = 512 << 20, 128 << 20
"""What a process keeps of indexes and manifests; Lance's own limits are 6 GiB and 1 GiB."""
_BATCH_ROWS = 2048
_LOOKUP_VALUES = 1000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")


class VectorStore:
    """The vector tables below one location. Tables go by their full name, `vectors.<table>`. Thread-safe."""

    def __init__(self, location: Location) -> None:
        self._root = location
        self._options = None if location.is_local else location.s3().object_store()
        self._session = Session(INDEX_CACHE_BYTES, METADATA_CACHE_BYTES)

    def location(self, name: str) -> Location:
        """Where the dataset of table `name` lies."""
        table = name.removeprefix(LAYER)
        if not _NAME.fullmatch(table):
            raise StoreError(f"{name!r}: the name of a vector table holds letters, digits, '_' and '-' only")
        return self._root.child(f"{table}.lance")

    def dataset(self, name: str, version: int | str | None = None) -> lance.LanceDataset:
        """The table as it is now, or at a version or tag, as a pyarrow dataset.

        Raises `TableNotFoundError`, or `SnapshotNotFoundError` for a version that does not exist (any more).
        """
        try:
            return lance.dataset(self._uri(name), version=version, storage_options=self._options, session=self._session)
        except ValueError as error:
            if version is not None and self.exists(name):
                raise SnapshotNotFoundError(
                    f"{name}: there is no version or tag {version}, or it has expired"
                ) from error
            raise TableNotFoundError(f"{name}: there is no such table yet; `pkm run` makes it") from error
        except OSError as error:
            raise _store_error(name, error) from error

    def ensure(self, spec: TableSpec) -> None:
        """Create the table of `spec` where it does not exist yet.

        Raises `StoreError` if it exists with other columns, or if the spec has no single key column.
        """
        schema = _schema_of(spec)
        if not self.exists(spec.name):
            probe(self._root)
            try:
                lance.write_dataset(
                    [], self._uri(spec.name), schema=schema, mode="create", storage_options=self._options,
                    data_storage_version=_STORAGE_VERSION,
                )  # fmt: skip
            except OSError as error:
                if not self.exists(spec.name):  # else another process was faster
                    raise _store_error(spec.name, error) from error
        found = self.schema(spec.name)
        if not found.equals(schema):
            differing = sorted(
                {field.name for field in schema if field not in list(found)}
                | {field.name for field in found if field not in list(schema)}
            )
            raise StoreError(
                f"{spec.name}: the table has other columns than this version knows: {', '.join(differing)}"
            )

    def exists(self, name: str) -> bool:
        """Whether there is a table `name`."""
        try:
            lance.dataset(self._uri(name), storage_options=self._options, session=self._session)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and "not found" in str(error):
                return False
            raise _store_error(name, error) from error
        return True

    def schema(self, name: str) -> pa.Schema:
        """The Arrow schema, with the columns' docs as metadata."""
        return self.dataset(name).schema

    def version(self, name: str) -> int | None:
        """The newest version; None if the table does not exist."""
        return self.dataset(name).version if self.exists(name) else None

    def write(
        self,
        delta: Delta,
        *,
        lease_check: Callable[[], None] | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> CommitResult:
        """Commit `delta` as one version: rows, deletes and watermarks, or nothing.

        `merge` adds rows or replaces those of the same key, `append` leaves those of the same key as they are,
        `replace` also removes every other row (of `replace_where`). A key that stands twice in the rows counts with
        its last row; one that is also to be deleted stays. Nothing is written when no row would change and no
        watermark moved; a watermark alone makes a version without new files. `lease_check` is called right before
        each commit. Rows beyond `memory_bytes` are staged beside the table.

        Raises `TableNotFoundError`, `CommitConflictError`, `StoreError`, and what `lease_check` raises.
        """
        dataset = self.dataset(delta.table)
        key = _key_of(delta.table, dataset.schema)
        with StagedRows(delta.table, self._uri(delta.table), self._options, dataset.schema, key) as rows:
            rows.fill(delta.rows, memory_bytes)
            with _errors(delta.table):
                return commit_delta(lambda: self.dataset(delta.table), delta, rows, key, lease_check)

    def watermark(self, name: str, input_table: str) -> int | None:
        """The snapshot of `input_table` up to which the table has read it; None if it cannot be told.

        None also after another tool cleaned the versions that knew: compare by key then.
        """
        with _errors(name):
            return read_marks(self.dataset(name)).watermarks.get(input_table)

    def read(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        filter: str | None = None,
        version: int | str | None = None,
        as_of: dt.datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The rows in batches, now, at a version or tag, or as of a moment. `filter` is SQL that quotes its values."""
        if as_of is not None:
            version = self._version_as_of(name, as_of)
        dataset = self.dataset(name, version)
        return self._scan(name, dataset, columns, filter, limit)

    def lookup(
        self, name: str, column: str, values: Iterable[str], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows whose `column` is one of `values`, in batches, each row once."""
        dataset = self.dataset(name)
        distinct = list(dict.fromkeys(values))
        for start in range(0, len(distinct), _LOOKUP_VALUES):
            where = sql.is_in(column, distinct[start : start + _LOOKUP_VALUES])
            yield from self._scan(name, dataset, columns, where, None)

    def count(self, name: str, filter: str | None = None) -> int:
        """How many rows there are."""
        with _errors(name):
            return self.dataset(name).count_rows(filter)

    def tag(self, name: str, tag: str, version: int) -> None:
        """Name a version so that it is kept; a tag that exists moves."""
        tags = self.dataset(name).tags
        try:
            tags.create(tag, version)
        except ValueError as error:
            if "already exists" not in str(error):
                raise SnapshotNotFoundError(f"{name}: there is no version {version} to tag as {tag}") from error
            self._move_tag(name, tag, version)
        except OSError as error:
            raise _store_error(name, error) from error

    def _move_tag(self, name: str, tag: str, version: int) -> None:
        try:
            self.dataset(name).tags.update(tag, version)
        except ValueError as error:
            raise SnapshotNotFoundError(f"{name}: there is no version {version} to tag as {tag}") from error

    def untag(self, name: str, tag: str) -> None:
        """Drop a tag; one that does not exist is no error."""
        try:
            self.dataset(name).tags.delete(tag)
        except ValueError as error:
            if "does not exist" not in str(error):
                raise _store_error(name, error) from error

    def tags(self, name: str) -> Mapping[str, int]:
        """The tags and their versions."""
        with _errors(name):
            return {tag: entry["version"] for tag, entry in self.dataset(name).tags.list().items()}

    def search(
        self,
        name: str,
        *,
        vector: np.ndarray | None,
        text: str | None,
        mode: SearchMode,
        k: int,
        where: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """The `k` rows that answer best, best first, with a column `score` in [0, 1] (see `lance_search`).

        `vector` is float32 of the table's dimension; `text` is whatever a person typed. `where` is SQL that quotes its
        values, applied before the search. Raises `QueryError`.
        """
        dataset = self.dataset(name)
        key = _key_of(name, dataset.schema)
        try:
            return search_dataset(dataset, key, vector=vector, text=text, mode=mode, k=k, where=where, columns=columns)
        except ValueError as error:
            raise QueryError(f"{name}: the search failed: {_first_line(error)}") from error
        except (OSError, RuntimeError) as error:
            raise _store_error(name, error) from error

    def index(self, name: str) -> IndexReport:
        """Make the indexes that pay and refresh those that lag; cheap when there is nothing to do."""
        key = _key_of(name, self.schema(name))
        with _errors(name):
            return lance_index.refresh_indexes(lambda: self.dataset(name), key)

    def recall(self, name: str) -> Recall | None:
        """What was measured of the table's vector index; None if it never had one."""
        with _errors(name):
            return lance_index.read_recall(self.dataset(name))

    def debt(self, name: str) -> VectorDebt:
        """What has piled up in a table; reads its manifest and the list of its versions."""
        with _errors(name):
            return lance_maintain.measure_debt(self.dataset(name))

    def plan_compaction(self, name: str) -> list[Run]:
        """What `optimize` would rewrite."""
        with _errors(name):
            return lance_maintain.plan_compaction(self.dataset(name))

    def optimize(self, name: str, progress: Progress | None = None) -> tuple[list[Run], IndexReport]:
        """Compact files and bring every index up to date; for maintenance, not for each write.

        In bounded memory, beside readers and writers, and taken up again where it was interrupted. Returns what was
        rewritten and which indexes were refreshed. What `plan_compaction` still lists
        then is what writers kept touching. Raises `CommitConflictError`, `CancelledError`, `StoreError`.
        """
        with _errors(name):
            # What no index holds yet is compacted first: it costs no index anything. The indexes that then took it in
            # may hold in one piece what they had kept apart, and what is left of it is compacted after.
            runs = lance_maintain.compact(lambda: self.dataset(name), progress)
            report = lance_index.fold_in(lambda: self.dataset(name))
            return runs + lance_maintain.compact(lambda: self.dataset(name), progress), report

    def count_old(self, name: str, older_than: dt.timedelta) -> int:
        """How many versions `cleanup` would remove; cheaper than `removable`."""
        with _errors(name):
            return lance_maintain.count_old(self.dataset(name), older_than)

    def removable(self, name: str, older_than: dt.timedelta) -> Removable:
        """What `cleanup` would remove."""
        with _errors(name):
            return lance_maintain.removable(self.dataset(name), older_than)

    def cleanup(self, name: str, older_than: dt.timedelta) -> Removable:
        """Delete untagged versions that are older; watermarks survive. Returns what was removed."""
        with _errors(name):
            return lance_maintain.clean_up(lambda: self.dataset(name), older_than)

    def names(self) -> list[str]:
        """The full names of all tables, sorted."""
        return sorted(LAYER + folder for folder in self._folders() if STAGING not in folder)

    def abandoned(self, older_than: dt.timedelta) -> list[str]:
        """Staged rows that a killed writer left behind: datasets in which nothing was written for so long."""
        limit = dt.datetime.now(dt.UTC) - older_than
        store = open_store(self._root)
        found: list[str] = []
        for folder in self._folders():
            if STAGING in folder:
                pages = store.list(f"{folder}.lance/")
                if all(entry["last_modified"] < limit for page in pages for entry in page):
                    found.append(folder)
        return sorted(found)

    def sweep(self, older_than: dt.timedelta) -> int:
        """Remove what `abandoned` lists; how many datasets there were."""
        left = self.abandoned(older_than)
        for folder in left:
            uri = self._root.child(f"{folder}.lance")
            lance.LanceDataset.drop(
                str(uri.path) if uri.is_local else uri.url, storage_options=self._options, ignore_not_found=True
            )
        return len(left)

    def _folders(self) -> list[str]:
        store = open_store(self._root)
        found = [prefix.rstrip("/").rpartition("/")[2] for prefix in store.list_with_delimiter()["common_prefixes"]]
        return [folder.removesuffix(".lance") for folder in found if folder.endswith(".lance")]

    def _uri(self, name: str) -> str:
        location = self.location(name)
        return str(location.path) if location.is_local else location.url

    def _version_as_of(self, name: str, as_of: dt.datetime) -> int:
        versions = [
            entry["version"]
            for entry in self.dataset(name).versions()
            # Lance gives naive local times.
            if isinstance(entry["timestamp"], dt.datetime) and entry["timestamp"].astimezone(dt.UTC) <= as_of
        ]
        if not versions:
            raise SnapshotNotFoundError(f"{name}: it has no version as of {as_of.isoformat()}, or it has expired")
        return max(versions)

    def _scan(
        self,
        name: str,
        dataset: lance.LanceDataset,
        columns: Sequence[str] | None,
        where: str | None,
        limit: int | None,
    ) -> Iterator[pa.RecordBatch]:
        with _errors(name):
            scanner = dataset.scanner(
                columns=list(columns) if columns is not None else None,
                filter=where,
                limit=limit,
                batch_size=_BATCH_ROWS,
            )
            yield from scanner.to_batches()


def _schema_of(spec: TableSpec) -> pa.Schema:
    """The spec's schema, its key marked so that Lance knows it too."""
    if len(spec.key) != 1 or not spec.column(spec.key[0]).required:
        raise StoreError(f"{spec.name}: a vector table needs exactly one key column, and it must be required")
    fields = [
        field.with_metadata({**(field.metadata or {}), _PRIMARY_KEY: b"true"}) if field.name in spec.key else field
        for field in spec.arrow
    ]
    return pa.schema(fields, {"pkm.format-version": str(spec.format_version)})


def _key_of(name: str, schema: pa.Schema) -> str:
    for field in schema:
        if (field.metadata or {}).get(_PRIMARY_KEY) == b"true":
            return field.name
    raise StoreError(f"{name}: the table has no key; it was not made by this project")


@contextmanager
def _errors(name: str) -> Generator[None]:
    """Turn what Lance raises into a `StoreError` that names the table."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise _store_error(name, error) from error


def _store_error(name: str, error: BaseException) -> StoreError:
    return StoreError(f"{name}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    """What Lance says first; the rest is where in its source it was said."""
    return str(error).strip().partition("\n")[0].partition(", /")[0][:300]
