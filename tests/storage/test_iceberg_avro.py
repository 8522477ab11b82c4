"""Writing an Avro file of Iceberg's again changes what was asked for, and nothing else; an upgrade would be noticed."""

from __future__ import annotations

from pyiceberg.avro.file import AvroFile
from pyiceberg.io import FileIO

from pkm_pipelines.storage.iceberg_avro import Row, read_rows, rewrite
from pkm_pipelines.tables.manager import TableManager
from tests.support.iceberg import STATE, thing, write
from tests.support.position_deletes import delete_positions


def header(io: FileIO, path: str) -> dict[str, str]:
    with AvroFile(io.new_input(path)) as file:
        return dict(file.header.meta)


def test_lists_and_manifests_of_data_and_of_deletes_are_the_same_but_for_their_paths(tables: TableManager) -> None:
    write(tables, STATE, [thing(f"t{number}", number) for number in range(20)])
    delete_positions(tables, STATE, "id", {"t3"})
    table = tables.iceberg.load(STATE.name)
    snapshot = table.current_snapshot()
    assert snapshot is not None
    manifests = [row["manifest_path"] for row in read_rows(table.io.new_input(snapshot.manifest_list))]
    assert len(manifests) == 2
    for number, path in enumerate([snapshot.manifest_list, *manifests]):
        copy = f"{table.location()}/copy-{number}.avro"
        size = rewrite(table.io.new_input(path), table.io.new_output(copy), lambda row: None)
        assert size == len(table.io.new_input(copy))
        assert header(table.io, copy) == header(table.io, path)
        assert list(read_rows(table.io.new_input(copy))) == list(read_rows(table.io.new_input(path)))

    def change(row: Row) -> None:
        row["data_file"]["file_path"] = "elsewhere"
        row["no such field"] = 1

    changed = f"{table.location()}/changed.avro"
    rewrite(table.io.new_input(manifests[0]), table.io.new_output(changed), change)
    for before, after in zip(
        read_rows(table.io.new_input(manifests[0])), read_rows(table.io.new_input(changed)), strict=True
    ):
        assert after["data_file"]["file_path"] == "elsewhere" != before["data_file"]["file_path"]
        assert after["no such field"] is None
        for name in ("record_count", "file_size_in_bytes", "lower_bounds", "upper_bounds", "partition", "content"):
            assert after["data_file"][name] == before["data_file"][name]
        assert (after["status"], after["snapshot_id"]) == (before["status"], before["snapshot_id"])
