"""The files of a local table: those that are there, and those that its metadata refers to."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pyiceberg.table import Table


def present(table: Table) -> set[str]:
    """Every file in the table's folder."""
    folder = Path(urlsplit(table.location()).path)
    return {str(file) for file in folder.rglob("*") if file.is_file()}


def referenced(table: Table) -> set[str]:
    """Every file that any snapshot of the table, or its log of metadata, refers to."""
    found = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
    for snapshot in table.snapshots():
        found.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            found.add(manifest.manifest_path)
            found |= {entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io)}
    return {urlsplit(url).path for url in found}


def orphans(table: Table) -> set[str]:
    """Files that nothing refers to."""
    return present(table) - referenced(table)
