"""The whole road with every store on S3: the same rows, and no data on local disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lake import assert_same, open_lake
from tests.support.s3 import S3Endpoint


@pytest.mark.e2e
def test_everything_on_s3(work: Path, s3_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = work / "vault"
    vault.mkdir()
    (vault / "Bread.md").write_text("# Bread\n\nOf [[Flour]], see ![[scale.png]].\n")
    (vault / "Flour.md").write_text("# Flour\n\nMilled from rye, a unique word: zymurgy.\n")
    (vault / "scale.png").write_bytes(b"a picture")
    url = s3_endpoint.location().url
    stores = {name: f"{url}/{name}" for name in ("warehouse", "vectors", "state", "objects")}
    temporary = work / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with open_lake(work / "lake", vault, **stores) as lake, open_lake(work / "local", vault) as local:
        lake.update()
        (vault / "Bread.md").write_text("# Bread\n\nOf [[Flour]] and [[Water]].\n")
        lake.update()
        assert lake.is_current()
        local.update()
        assert_same(lake, local)
        assert lake.search("zymurgy", k=1, mode="text")[0].path == "Flour.md"
        assert lake.sql("SELECT count(*) AS n FROM silver.processed_notes")["n"].to_pylist() == [2]
    left = [path for path in (work / "lake").rglob("*") if path.is_file()]
    # The catalog is a local SQLite file here by its own setting, and the state service has its socket.
    assert {path.parent.name for path in left} <= {".pkm", "run"}, left
    for path in left:
        assert b"zymurgy" not in path.read_bytes(), path
    assert not list(temporary.rglob("*.parquet"))
