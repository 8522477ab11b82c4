"""Tables whose files lie in a folder while the catalog does not know them: what may not be made over, nor cleaned away.

A table that is made where another one lies looks empty, and the files of the other are then orphans of it. A metadata
file that shows no snapshot is of no such table: a creation leaves one that was killed, or lost to a quicker one.
"""

from __future__ import annotations

import re

from pyarrow.fs import FileSelector, FileType
from pyiceberg.exceptions import ValidationError
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.serializers import FromInputFile

from pkm_pipelines.storage.iceberg_catalog import warehouse_path
from pkm_pipelines.storage.location import Location

_NAME = re.compile(r"(?:v(?P<v>\d+)|(?P<n>\d+)-[0-9a-fA-F-]{36})(?:\.gz)?\.metadata\.json")


def metadata_number(file: str) -> int | None:
    """The number of a metadata file, by its name without a folder; None if it is no metadata file."""
    match = _NAME.fullmatch(file)
    return int(match["v"] or match["n"]) if match else None


def table_left(io: PyArrowFileIO, warehouse: Location, name: str) -> str | None:
    """The newest metadata file of a table that lies where the table `name` would be made; None if there is none.

    Those are the folders in which a rebuild of the catalog would find it: Glue's folders of a layer end in `.db`.
    Raises `OSError` if they cannot be read.
    """
    layer, _, table = name.rpartition(".")
    root = warehouse_path(warehouse)
    for folder in (f"{root}/{layer}/{table}", f"{root}/{layer}.db/{table}"):
        if found := _newest(io, folder):
            return found
    return None


def is_of_another(io: FileIO, location: str, table_uuid: str) -> bool:
    """Whether a metadata file shows snapshots of another table than `table_uuid`. A torn one shows nothing."""
    try:
        metadata = FromInputFile.table_metadata(io.new_input(location))
    except (FileNotFoundError, ValueError, ValidationError):
        return False
    return bool(metadata.snapshots) and str(metadata.table_uuid) != table_uuid


def _newest(io: PyArrowFileIO, folder: str) -> str | None:
    scheme, host, path = PyArrowFileIO.parse_location(f"{folder}/metadata", io.properties)
    selector = FileSelector(path, allow_not_found=True)
    listed = [
        file.base_name for file in io.fs_by_scheme(scheme, host).get_file_info(selector) if file.type == FileType.File
    ]
    numbers = {file: number for file in listed if (number := metadata_number(file)) is not None}
    for file, number in sorted(numbers.items(), key=lambda item: (item[1], item[0]), reverse=True):
        location = f"{folder}/metadata/{file}"
        try:
            has_snapshots = bool(FromInputFile.table_metadata(io.new_input(location)).snapshots)
        except FileNotFoundError:  # its table has moved on just now
            continue
        except (ValueError, ValidationError):
            has_snapshots = number > 0  # the first one is torn when a creation was killed while it wrote it
        if has_snapshots:
            return location
    return None
