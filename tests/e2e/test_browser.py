"""The UI in a real browser: the asset graph, a materialised asset, and a backfill of three days.

Needs the system's Chromium; playwright only drives it. Screenshots stay in `tests/output/`.
"""

from __future__ import annotations

import datetime as dt
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from pkm_pipelines import settings
from pkm_pipelines.lakehouse import Lakehouse
from tests.support.dev import Ui, pkm, running_dev
from tests.support.vaults import History

OUTPUT = Path(__file__).resolve().parents[1] / "output"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000
TABLES = {
    "bronze": ["raw_notes", "raw_media"],
    "silver": ["processed_notes", "extracted_concepts", "knowledge_graph"],
    "gold": ["note_metrics", "note_embeddings"],
}
TODAY = dt.datetime.now(dt.UTC)
# Days before today on which the history has a commit; the oldest three are filled in later.
COMMITTED = (6, 5, 4, 3)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
]


def day(days_ago: int) -> dt.date:
    return (TODAY - dt.timedelta(days=days_ago)).date()


def make_home(home: Path) -> None:
    """A lakehouse over a git history of four days: each adds notes and edits an older one."""
    home.mkdir()
    history = History(home / "notes.git")
    files: dict[str, str] = {}
    for number, days_ago in enumerate(COMMITTED):
        files |= {
            f"Loaf {number}-{i}.md": f"---\ntags: [bread/rye]\n---\n# Loaf {number}-{i}\n\nAfter [[Loaf 0-{i}]].\n"
            for i in range(5)
        }
        files["Loaf 0-0.md"] += f"\nDay {number}.\n"
        noon = dt.datetime.combine(day(days_ago), dt.time(12), dt.UTC)
        history.commit(files, at=noon)
    (home / "pkm.toml").write_text(
        f'runtime_dir = "run"\npartitions_start = {day(30)}\n'
        '[embedder]\nmodel = "hashing"\n[state_service]\nidle_seconds = 15\n'
        '[[sources]]\nname = "notes"\nkind = "git"\npath = "notes.git"\n'
    )


@pytest.fixture
def ui(work: Path) -> Iterator[Ui]:
    home = work / "lake"
    make_home(home)
    command, environment = pkm(home)
    subprocess.run([*command, "run"], env=environment, check=True, timeout=240)
    OUTPUT.mkdir(exist_ok=True)
    with running_dev(home, OUTPUT / "pkm-dev.log") as ui:
        yield ui


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 2200, "height": 1240})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        try:
            yield page
        finally:
            shoot(page, "last")
            browser.close()


def shoot(page: Page, name: str) -> None:
    page.screenshot(path=OUTPUT / f"{name}.png")


def changes_by_day(home: Path) -> dict[dt.date, int]:
    with Lakehouse.open(settings.load(home / "pkm.toml")) as lake:
        days = lake.tables.read("bronze.raw_notes", columns=["partition_date"]).read_all()["partition_date"]
    found = days.to_pylist()
    return {value: found.count(value) for value in set(found)}


def test_graph_asset_and_backfill(ui: Ui, page: Page) -> None:
    see_the_graph(ui, page)
    see_an_asset(ui, page)
    before = changes_by_day(ui.home)
    launch_a_backfill(ui, page, day(COMMITTED[0]), day(COMMITTED[2]))
    after = changes_by_day(ui.home)
    # Five new notes a day and, from the second day on, one that was edited.
    assert {after[day(days_ago)] for days_ago in COMMITTED[:3]} == {5, 6}
    assert sum(after.values()) > sum(before.values()), "the history was not there before"
    assert "Traceback" not in (OUTPUT / "pkm-dev.log").read_text()


def see_the_graph(ui: Ui, page: Page) -> None:
    page.goto(f"{ui.address}/asset-groups")
    expect(page.get_by_text("Materialize all")).to_be_visible()
    for group in TABLES:
        page.goto(page.url)  # the graph is laid out anew and whole
        page.locator("svg").get_by_text(group, exact=True).first.click()
        page.wait_for_url(re.compile(f"expanded=.*{group}"))
    page.goto(page.url)
    for tables in TABLES.values():
        for table in tables:
            expect(page.locator("svg").get_by_text(table, exact=True).first).to_be_visible()
    expect(page.get_by_text("Materialized").first).to_be_visible()
    shoot(page, "graph")


def see_an_asset(ui: Ui, page: Page) -> None:
    page.goto(f"{ui.address}/assets/silver/processed_notes")
    expect(page.get_by_text("Row count").first).to_be_visible()
    expect(page.get_by_text("20", exact=True).first).to_be_visible()
    expect(page.get_by_text("Column name").first).to_be_visible()
    expect(page.get_by_text("front_matter", exact=True).first).to_be_visible()
    expect(page.get_by_text("Title of the note").or_(page.get_by_text("Front-matter title")).first).to_be_visible()
    shoot(page, "asset")
    page.goto(f"{ui.address}/assets/silver/processed_notes?view=lineage")
    for table in ("raw_notes", "processed_notes", "knowledge_graph"):
        expect(page.locator("svg").get_by_text(table, exact=True).first).to_be_visible()
    shoot(page, "asset-lineage")
    page.goto(f"{ui.address}/assets/silver/processed_notes?view=events")
    for name in ("iceberg/snapshot_id", "records_per_second", "preview"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    shoot(page, "asset-metadata")


def launch_a_backfill(ui: Ui, page: Page, first: dt.date, last: dt.date) -> None:
    page.goto(f"{ui.address}/asset-groups")
    page.get_by_text("Materialize all").click()
    dialog = page.get_by_role("dialog")
    days = dialog.get_by_placeholder("No matching partitions")
    days.fill(f"[{first}...{last}]")
    days.blur()
    expect(dialog.get_by_text("3 partitions")).to_be_visible()
    shoot(page, "backfill-dialog")
    dialog.get_by_role("button", name="Launch backfill").click()
    expect(page.get_by_text("Created backfill")).to_be_visible()
    page.goto(f"{ui.address}/runs?view=backfills")
    page.get_by_role("link", name="View", exact=True).first.click()
    page.wait_for_url(re.compile("/runs/b/"))
    # One run of the days, then one of what hangs on them.
    expect(page.get_by_text("100% completed")).to_have_count(7, timeout=240_000)
    status = page.get_by_text("Status", exact=True).locator("xpath=..")
    expect(status).to_contain_text("Succeeded", timeout=PATIENCE_MS)
    shoot(page, "backfill")
