"""What the storage takes from pyiceberg that has no public name. It is all here, and nowhere else.

Each part stands under a public name with the reason why there is no other way. A test for each,
`tests/storage/test_pyiceberg_private.py`, asks the pyiceberg that is installed, so an upgrade that moves a part fails
there and names it; another checks that no other module reaches past pyiceberg's public names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.expressions import BooleanExpression
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import _read_deletes  # pyright: ignore[reportPrivateUsage]
from pyiceberg.manifest import DataFile, ManifestContent, ManifestFile, ManifestWriterV2
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import ManifestGroupPlanner, Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import TableRequirement, TableUpdate

from pkm_pipelines.storage.cache import RecentlyUsed

_KEPT_METADATA = 32


class Pruning:
    """Which manifests and files may hold rows that match a filter, prepared once for each partition spec.

    pyiceberg plans whole scans only, and reads every manifest anew for each.
    """

    def __init__(self, table: Table, row_filter: BooleanExpression) -> None:
        planner = ManifestGroupPlanner(table.metadata, table.io, row_filter)
        specs = table.metadata.specs()
        manifest = planner._build_manifest_evaluator  # pyright: ignore[reportPrivateUsage]
        partition = planner._build_partition_evaluator  # pyright: ignore[reportPrivateUsage]
        self._manifest: Mapping[int, Callable[[ManifestFile], bool]] = {spec: manifest(spec) for spec in specs}
        self._partition: Mapping[int, Callable[[DataFile], bool]] = {spec: partition(spec) for spec in specs}
        self._metrics = planner._build_metrics_evaluator()  # pyright: ignore[reportPrivateUsage]

    def may_hold(self, manifest: ManifestFile) -> bool:
        """Whether a file of the manifest may match, by the bounds of its partitions."""
        return self._manifest[manifest.partition_spec_id](manifest)

    def may_match(self, file: DataFile) -> bool:
        """Whether a row of the file may match, by its partition and the bounds of its columns."""
        return self._partition[file.spec_id](file) and self._metrics(file)


def read_any_deletes(io: FileIO, delete: DataFile) -> Mapping[str, pa.ChunkedArray]:
    """The positions in a delete file by path, whatever its format: ORC, and deletion vectors of format 3.

    We read Parquet ourselves, and have no reader of the others; pyiceberg has one, inside of its scans.
    """
    return _read_deletes(io, delete)


def staged(transaction: Transaction) -> tuple[Sequence[TableUpdate], Sequence[TableRequirement]]:
    """What a transaction would ask of the catalog.

    Its own commit would retry by itself on what was decided for another state of the table.
    """
    updates = transaction._updates  # pyright: ignore[reportPrivateUsage]
    return updates, transaction._requirements  # pyright: ignore[reportPrivateUsage]


class DeleteManifestWriter(ManifestWriterV2):
    """A writer of manifests of delete files; pyiceberg has none. They differ in what they say of their content."""

    def content(self) -> ManifestContent:
        """What the manifest lists."""
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


class WarmSqlCatalog(SqlCatalog):
    """An SQL catalog that parses each metadata file once.

    Such a file never changes under its name, yet pyiceberg reads and parses it anew at each load of a table: some
    milliseconds, more with every snapshot, and a commit loads its table several times. What is current is still asked
    of the database each time.
    """

    def _convert_orm_to_iceberg(self, orm_table: IcebergTables) -> Table:
        location = orm_table.metadata_location
        if not location:
            raise NoSuchTableError(f"{orm_table.table_namespace}.{orm_table.table_name} has no metadata file")
        metadata = _METADATA.get(
            location, lambda: FromInputFile.table_metadata(self._load_file_io(location=location).new_input(location))
        )
        return Table(
            identifier=(*self.identifier_to_tuple(orm_table.table_namespace), orm_table.table_name),
            metadata=metadata,
            metadata_location=location,
            io=self._load_file_io(metadata.properties, location),
            catalog=self,
        )


_METADATA: RecentlyUsed[TableMetadata] = RecentlyUsed(_KEPT_METADATA, lambda _: 1)
