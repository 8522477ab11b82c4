"""Work on all cores: in order, with the errors of the workers, and with a large vault through the whole road."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pkm_pipelines.operations import parallel
from pkm_pipelines.operations.parallel import Spread
from tests.support.lake import assert_same, open_lake


def double(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pc.multiply(batch["n"], 2)], ["n"])


def refuse(batch: pa.RecordBatch) -> pa.RecordBatch:
    raise ValueError(f"a batch of {batch.num_rows}")


def batches(rows: int) -> list[pa.RecordBatch]:
    return pa.table({"n": range(rows)}).to_batches(max_chunksize=100)


@pytest.mark.parametrize("rows", [0, 250, 5000])
def test_the_order_is_kept(rows: int) -> None:
    with Spread() as spread:
        found = [n for batch in spread.map(double, batches(rows)) for n in batch["n"].to_pylist()]
    assert found == [2 * n for n in range(rows)]


@pytest.mark.parametrize("rows", [100, 5000])
def test_an_error_comes_through(rows: int) -> None:
    with Spread() as spread, pytest.raises(ValueError, match="a batch of 100"):
        list(spread.map(refuse, batches(rows)))


def test_a_large_vault_is_spread_and_ends_the_same(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = work / "vault"
    vault.mkdir()
    for number in range(120):
        (vault / f"Note {number}.md").write_text(f"# Note {number}\n\nOf bread and [[Note {number // 2}]].\n")
    with open_lake(work / "here", vault) as here, open_lake(work / "spread", vault, batch_notes=40) as spread:
        here.update()
        monkeypatch.setattr(parallel, "SPREAD_ROWS", 50)
        monkeypatch.setattr("pkm_pipelines.operations.derive.WINDOW_NOTES", 60)
        spread.update()
        assert_same(spread, here)
