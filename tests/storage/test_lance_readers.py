"""The vectors are plain Lance: lancedb opens, searches and filters what this project writes."""

from __future__ import annotations

from pathlib import Path

import lancedb
import numpy as np

from pkm_pipelines.storage.location import Location
from tests.support.lake import open_lake


def test_lancedb_reads_and_searches_the_vectors(work: Path) -> None:
    vault = work / "vault"
    vault.mkdir()
    (vault / "Bread.md").write_text("# Bread\n\nKneaded with patience.\n")
    (vault / "Tea.md").write_text("# Tea\n\nSteeped for three minutes.\n")
    with open_lake(work / "lake", vault) as lake:
        lake.update()
        assert lake.vector_table is not None and lake.embedder is not None
        location: Location = lake.vectors.location(lake.vector_table)
        table = lancedb.connect(location.path.parent).open_table(location.path.stem)
        assert table.count_rows() == 2
        vector = np.asarray(lake.embedder.encode_query("steeped tea"))
        [nearest] = table.search(vector, vector_column_name="embedding").limit(1).to_list()
        assert nearest["path"] == "Tea.md"
        [found] = (
            table.search("patience", query_type="fts", fts_columns="text")
            .where("source = 'vault'", prefilter=True)
            .to_list()
        )
        assert found["path"] == "Bread.md"
