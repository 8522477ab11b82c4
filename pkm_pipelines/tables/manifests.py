"""Manifests of a good size, in which the files of a partition stand together, so that a scan passes over most of them.

Commits merge manifests by size, which keeps them few but mixes partitions. Here the small ones are written anew,
sorted by partition, as a `replace` snapshot without any data; so many files of a time that memory is bounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import Table

from pkm_pipelines.storage.iceberg_manifests import manifests_of
from pkm_pipelines.storage.iceberg_snapshot import Clustering, Writes
from pkm_pipelines.tables.compact import MAINTENANCE

# Files whose entries one commit holds in memory, some 2 KB each.
FILES_AT_ONCE = 50_000
# A manifest of this share of the target size is large enough.
FULL_SHARE = 0.5


@dataclass(frozen=True)
class Rewrite:
    """Manifests of one kind that become about `outputs`."""

    manifests: tuple[ManifestFile, ...]
    files: int
    bytes: int
    outputs: int

    @property
    def files_each(self) -> int:
        """Files in each new manifest."""
        return max(1, -(-self.files // self.outputs))


def plan_manifests(table: Table, target_bytes: int) -> list[Rewrite]:
    """What there is to rewrite, one part for each kind of manifests and partition spec."""
    small: dict[tuple[ManifestContent, int], list[ManifestFile]] = defaultdict(list)
    for manifest in manifests_of(table, table.metadata.current_snapshot()):
        if manifest.manifest_length < FULL_SHARE * target_bytes:
            small[manifest.content, manifest.partition_spec_id].append(manifest)
    found: list[Rewrite] = []
    for manifests in small.values():
        chosen: list[ManifestFile] = []
        files = 0
        for manifest in sorted(manifests, key=lambda manifest: manifest.manifest_length):
            if chosen and files + _files(manifest) > FILES_AT_ONCE:
                break
            chosen.append(manifest)
            files += _files(manifest)
        size = sum(manifest.manifest_length for manifest in chosen)
        outputs = max(1, -(-size // target_bytes))
        if outputs < len(chosen):
            found.append(Rewrite(tuple(chosen), files, size, outputs))
    return found


class ManifestsPlan:
    """Rewrites small manifests; planned anew for each attempt, since only lists are read for it."""

    def __init__(self, target_bytes: int) -> None:
        self._target_bytes = target_bytes
        self.rewritten: list[Rewrite] = []

    @property
    def paths(self) -> Sequence[str]:
        """No data file is written."""
        return ()

    def __call__(self, table: Table) -> Writes | None:
        """Rewrite the first kind of them that needs it; None if none does."""
        self.rewritten = plan_manifests(table, self._target_bytes)[:1]
        if not self.rewritten:
            return None
        rewrite = self.rewritten[0]
        paths = frozenset(manifest.manifest_path for manifest in rewrite.manifests)
        return Writes(
            clustering=Clustering(paths, rewrite.files_each),
            operation="replace",
            properties={MAINTENANCE: "manifests"},
        )


def _files(manifest: ManifestFile) -> int:
    return (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)
