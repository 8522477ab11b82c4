"""What a run's log and record in state get to hear of the work."""

from pathlib import Path

import dagster as dg

from pkm_pipelines.model.progress import CountingProgress
from pkm_pipelines.operations.jobs import read_job
from resources.lakehouse import LakehouseResource, LogProgress, attached
from tests.support.lake import open_lake


def test_the_log_has_stages_once_and_notes_as_warnings() -> None:
    instance = dg.DagsterInstance.ephemeral()

    @dg.op
    def work(context: dg.OpExecutionContext) -> None:
        progress = LogProgress(context.log)
        progress.stage("parse")
        progress.stage("parse")
        progress.stage("parse", total=3)
        progress.note("a folder has no past")

    @dg.job
    def job() -> None:
        work()

    result = job.execute_in_process(instance=instance)
    said = [(log.level, log.user_message) for log in instance.all_logs(result.run_id) if not log.is_dagster_event]
    assert said == [(20, "parse"), (20, "parse: 3 notes"), (30, "a folder has no past")]


def test_an_asset_reports_to_state_and_to_the_listener(work: Path) -> None:
    (work / "vault").mkdir()

    @dg.asset
    def words(context: dg.AssetExecutionContext, lakehouse: LakehouseResource) -> None:
        progress = lakehouse.progress(context)
        progress.stage("parse", total=2)
        progress.advance(2)
        progress.done()

    counted = CountingProgress()
    with open_lake(work / "lake", work / "vault") as lake, attached(lake, counted):
        result = dg.materialize([words], resources={"lakehouse": LakehouseResource()})
        job = read_job(lake.state, result.run_id)
    assert job is not None
    assert (job.status, job.stage, job.total, job.counts) == ("running", "parse", 2, {"parse": 2})
    assert (counted.name, counted.count) == ("parse", 2)
