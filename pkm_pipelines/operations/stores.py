"""The stores of one lakehouse, opened when first used.

Operations take a `Stores` and nothing else, so that a step of Dagster, the command line and a test
reach the same stores in the same way.
"""

from __future__ import annotations

from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import SourceError
from pkm_pipelines.settings import Settings
from pkm_pipelines.storage.location import Location

if TYPE_CHECKING:
    from pkm_pipelines.knowledge.embed import Embedder
    from pkm_pipelines.knowledge.note import Flavour
    from pkm_pipelines.sources.base import Source
    from pkm_pipelines.storage.iceberg import IcebergStore
    from pkm_pipelines.storage.lance import VectorStore
    from pkm_pipelines.storage.objects import ObjectStore
    from pkm_pipelines.storage.slate_client import State
    from pkm_pipelines.tables.manager import TableManager


class Stores:
    """Every store of a lakehouse. Imports are made here, late: each costs a part of a second."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def state(self) -> State:
        """The state service's client."""
        from pkm_pipelines.storage.slate_client import State

        return State.connect(Location(self.settings.state), self.settings.state_service, self.settings.runtime_dir)

    @cached_property
    def iceberg(self) -> IcebergStore:
        """The Iceberg warehouse."""
        from pkm_pipelines.storage.iceberg import IcebergStore

        return IcebergStore(Location(self.settings.warehouse), self.settings.catalog)

    @cached_property
    def tables(self) -> TableManager:
        """The table manager over the warehouse."""
        from pkm_pipelines.tables.manager import TableManager

        return TableManager(self.iceberg, self.state, memory_bytes=self.settings.tables.memory_mb << 20)

    @cached_property
    def vectors(self) -> VectorStore:
        """The Lance vectors."""
        from pkm_pipelines.storage.lance import VectorStore

        return VectorStore(Location(self.settings.vectors))

    @cached_property
    def objects(self) -> ObjectStore:
        """The content-addressed objects."""
        from pkm_pipelines.storage.objects import ObjectStore

        return ObjectStore(Location(self.settings.objects))

    @cached_property
    def embedder(self) -> Embedder | None:
        """The model of the settings, or None where there is to be none."""
        from pkm_pipelines.knowledge.embed import load_embedder

        return load_embedder(self.settings.embedder, self.settings.data_dir / "cache" / "models")

    @cached_property
    def vector_table(self) -> str | None:
        """The name of the vector table of the settings' model, or None; the model is not loaded for it."""
        from pkm_pipelines.knowledge.embed import embedder_name
        from pkm_pipelines.model.tables import note_embeddings

        name = embedder_name(self.settings.embedder)
        return None if name is None else note_embeddings(1, name).name

    def source(self, name: str) -> Source:
        """The source called `name`, opened."""
        from pkm_pipelines.sources import open_source

        settings = self.settings.source(name)
        return open_source(
            settings,
            self.settings.source_path(settings),
            batch_notes=self.settings.batch_notes,
            batch_bytes=self.settings.batch_mb << 20,
        )

    def flavour(self, name: str) -> Flavour:
        """How the notes of the source called `name` are written: `obsidian` or `logseq`.

        What the settings say counts, else what was found when the source was last read. So it is known of a source that
        cannot be read now, and of one that is not in the settings any more.
        """
        from pkm_pipelines.sources import detect_flavour

        settings = next((source for source in self.settings.sources if source.name == name), None)
        if settings is not None and settings.flavour != "auto":
            return settings.flavour
        if (found := self.state.get(keys.flavour(name))) is not None:
            return "logseq" if found == b"logseq" else "obsidian"
        try:
            return "obsidian" if settings is None else detect_flavour(self.source(name))
        except SourceError:
            return "obsidian"  # never read, or the state was lost: what most notes are written for

    def remember_flavour(self, name: str) -> None:
        """Look at a source that could just be read, and remember how its notes are written."""
        from pkm_pipelines.sources import detect_flavour

        settings = self.settings.source(name)
        found = detect_flavour(self.source(name)) if settings.flavour == "auto" else settings.flavour
        if self.state.get(keys.flavour(name)) != found.encode():
            self.state.put(keys.flavour(name), found.encode())

    def close(self) -> None:
        """Let go of the connections that were opened."""
        if "tables" in self.__dict__:
            self.tables.close()
        if "state" in self.__dict__:
            self.state.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
