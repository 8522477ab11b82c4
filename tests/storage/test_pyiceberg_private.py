"""The contract with pyiceberg: what is private of it does what we count on, and is asked for in one module only.

Where an upgrade moves one of these parts, a test here fails and says which.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.orc as orc
import pyiceberg
import pytest
from pyiceberg.expressions import EqualTo, GreaterThan
from pyiceberg.io import InputFile
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent
from pyiceberg.serializers import FromInputFile
from pyiceberg.typedef import Record

import pkm_pipelines
from pkm_pipelines.storage import pyiceberg_private
from pkm_pipelines.storage.iceberg_deletes import read_deletes
from pkm_pipelines.storage.iceberg_manifests import live_files, manifests_of
from pkm_pipelines.storage.pyiceberg_private import Pruning, read_any_deletes, staged
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import STATE, Place, thing, write

PACKAGE = Path(pkm_pipelines.__file__).parent


def test_the_version_of_pyiceberg_that_all_this_was_read_against() -> None:
    assert pyiceberg.__version__ == "0.12.0", "read the release notes, then run this file against the new version"


def test_no_other_module_uses_what_is_private() -> None:
    """Pyright refuses it anywhere (`make check`) but where a comment lets it pass."""
    own_private_parts = {"slate_client.py"}
    passing = [path.name for path in PACKAGE.rglob("*.py") if "reportPrivateUsage" in path.read_text(encoding="utf-8")]
    assert set(passing) - own_private_parts == {"pyiceberg_private.py"}


def test_no_other_module_overrides_what_is_private() -> None:
    """Pyright does not see this: a method of ours with the name of a private one of pyiceberg's."""
    storage = importlib.import_module("pkm_pipelines.storage")
    found: dict[str, set[str]] = {}
    for name in (f"{storage.__name__}.{one.name}" for one in pkgutil.iter_modules(storage.__path__)):
        module = importlib.import_module(name)
        for _, one in inspect.getmembers(module, inspect.isclass):
            theirs = [base for base in one.__mro__ if base.__module__.startswith("pyiceberg.")]
            if one.__module__ == name and theirs:
                private = {part for base in theirs for part in vars(base) if re.match("_[a-z]", part)} - {"_abc_impl"}
                found.setdefault(name, set()).update(private & vars(one).keys())
    assert {name for name, parts in found.items() if parts} == {pyiceberg_private.__name__}
    assert len(found) > 1, "there are others that extend a class of pyiceberg's"


def test_files_and_manifests_are_left_out_by_a_filter(tables: TableManager) -> None:
    write(tables, STATE, [thing(f"t{n}", lsn=n) for n in range(40)])
    write(tables, STATE, [thing(f"u{n}", lsn=1000 + n) for n in range(40)])
    table = tables.iceberg.load(STATE.name)
    files = [file.file for file in live_files(table, table.current_snapshot())]
    high = Pruning(table, GreaterThan("lsn", 900))
    kept = [file for file in files if high.may_match(file)]
    assert 0 < len(kept) < len(files)
    bucket = Pruning(table, EqualTo("id", "t1"))
    assert {file.partition[0] for file in files if bucket.may_match(file)} == {
        file.partition[0] for file in files if file.partition[0] == _bucket("t1")
    }
    (manifest, *_) = manifests_of(table, table.current_snapshot())
    assert Pruning(table, EqualTo("id", "t1")).may_hold(manifest)


def _bucket(value: str) -> int:
    from pyiceberg.transforms import BucketTransform
    from pyiceberg.types import StringType

    bucket = BucketTransform[str](4).transform(StringType())(value)
    assert bucket is not None
    return bucket


def test_deletes_in_a_format_that_we_do_not_read_ourselves(tables: TableManager, work: Path) -> None:
    file = work / "deletes.orc"
    marks = pa.table({"file_path": ["a.parquet", "a.parquet", "b.parquet"], "pos": pa.array([3, 1, 7], pa.int64())})
    orc.write_table(marks, file)
    delete = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=file.as_uri(),
        file_format=FileFormat.ORC,
        partition=Record(),
        record_count=3,
        file_size_in_bytes=file.stat().st_size,
    )
    io = tables.iceberg.load(STATE.name).io
    assert {path: sorted(found.to_pylist()) for path, found in read_any_deletes(io, delete).items()} == {
        "a.parquet": [1, 3],
        "b.parquet": [7],
    }
    # As in Parquet, whoever wrote it may have left it unsorted.
    assert {path: found.to_pylist() for path, found in read_deletes(io, delete).items()} == {
        "a.parquet": [1, 3],
        "b.parquet": [7],
    }


def test_what_a_transaction_would_ask(tables: TableManager) -> None:
    transaction = tables.iceberg.load(STATE.name).transaction()
    with transaction.update_schema() as schema:
        schema.rename_column("value", "figure")
    updates, requirements = staged(transaction)
    assert [type(one).__name__ for one in updates] == ["AddSchemaUpdate", "SetCurrentSchemaUpdate"]
    assert [type(one).__name__ for one in requirements] == ["AssertCurrentSchemaId"]


def test_a_manifest_of_delete_files_says_so(tables: TableManager) -> None:
    tables.set_mode(STATE.name, "merge-on-read")
    write(tables, STATE, [thing(f"t{n}", n) for n in range(40)])
    write(tables, STATE, [thing("t1", -1, lsn=1)])
    table = tables.iceberg.load(STATE.name)
    listed = manifests_of(table, table.current_snapshot())
    (deletes,) = (one for one in listed if one.content == ManifestContent.DELETES)
    assert len(listed) > 1
    with table.io.new_input(deletes.manifest_path).open() as stream:
        assert b"\x0econtent\x0edeletes" in stream.read(), "the key of the Avro file's own header"


def test_a_metadata_file_is_parsed_once_and_a_new_one_is_seen(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiceberg must still make tables by the method that is overridden."""
    store = local.open()
    store.ensure(STATE)
    parsed: list[str] = []
    parse = FromInputFile.table_metadata

    def counted(file: InputFile, *args: Any, **options: Any) -> Any:
        parsed.append(file.location)
        return parse(file, *args, **options)

    monkeypatch.setattr(FromInputFile, "table_metadata", counted)
    first = store.load(STATE.name)
    assert store.load(STATE.name).metadata is first.metadata
    assert len(parsed) <= 1
    other = local.open()
    with other.load(STATE.name).transaction() as transaction:
        transaction.set_properties(colour="red")
    now = store.load(STATE.name)
    assert now.properties["colour"] == "red"
    assert now.metadata_location != first.metadata_location
    assert parsed.count(now.metadata_location) == 1


def test_a_file_io_looks_for_its_file_systems_where_ours_puts_them() -> None:
    """Public by its name, and documented nowhere."""
    assert "fs_by_scheme" in vars(PyArrowFileIO({}))
