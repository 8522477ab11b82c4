"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The fixtures `s3_endpoint`, `store_location`, `open_state`, `postgres`; `place`, `store`, `local`, `tables`.
pytest_plugins = ["tests.support.s3", "tests.support.state", "tests.support.postgres", "tests.support.iceberg"]

BUDGETS = {"quick": 1, "ci": 3, "full": 20}
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

settings.register_profile(
    "pkm", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("pkm")


def budget_name() -> str:
    """quick, ci or full, from `PKM_TEST_BUDGET`."""
    name = os.environ.get("PKM_TEST_BUDGET", "quick")
    if name not in BUDGETS:
        raise pytest.UsageError(f"PKM_TEST_BUDGET={name}: must be one of {', '.join(BUDGETS)}")
    return name


@pytest.fixture(scope="session")
def budget() -> int:
    """How many times more examples, kills and steps than the quick budget."""
    return BUDGETS[budget_name()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the slow tests to the budgets that have room for them."""
    if budget_name() == "quick":
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="needs PKM_TEST_BUDGET=ci or full"))


@pytest.fixture(scope="session")
def ram_folder() -> Iterator[Path]:
    """A folder on a RAM disk where there is one, so that commits do not wait for a disk."""
    shm = Path("/dev/shm")
    base = shm if shm.is_dir() and os.access(shm, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="pkm-test-", dir=base))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def work(ram_folder: Path) -> Iterator[Path]:
    """An empty folder of this test's own."""
    folder = Path(tempfile.mkdtemp(dir=ram_folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real vaults and ground truth that the project does not own; they lie beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no test data at {SHARED_DATA} (it is not part of the repository)")
    return SHARED_DATA
