from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.report.job_document import Failure, Parts, job_report, read_parts
from finetune_trainer.workspace.layout import WorkspaceLayout, write_json_atomically, write_marker

from tests.support.results import MERGE, PREPARE, TRAIN

Runs = Callable[..., RunSpec]
RESULTS = {"prepare": PREPARE.document(), "train": TRAIN.document(), "merge": MERGE.document()}


def test_a_finished_job_has_the_results_of_all_stages(make_run: Runs) -> None:
    report = job_report(make_run(), Parts(results=RESULTS), "tiny")
    assert report["state"] == "Succeeded"
    assert report["failure"] is None
    assert report["dataset"]["kept"] == PREPARE.dataset.kept
    assert report["evaluation"]["verdict"] == TRAIN.evaluation.verdict
    assert report["training"]["steps"] == TRAIN.steps
    assert report["merge"]["artifacts"] == MERGE.document()["artifacts"]
    assert report["base"]["digest"] == PREPARE.model.digest


def test_a_job_that_failed_in_prepare_says_why_and_has_what_is_known(make_run: Runs) -> None:
    failure = Failure("Prepare", "InvalidDataset", "no rows")
    dataset = {
        "dataset": {"rows": 4, "kept": 1, "rejected": {"NoAssistantTurn": 3}},
        "refusal": "no rows",
        "sources": {},
    }
    report = job_report(make_run(), Parts(dataset=dataset, failure=failure), "tiny")
    assert report["state"] == "Failed"
    assert report["failure"]["reason"] == "InvalidDataset"
    assert report["dataset"]["rejected"] == {"NoAssistantTurn": 3}
    assert report["dataset"]["refusal"] == "no rows"
    assert [report[name] for name in ("training", "evaluation", "merge")] == [None, None, None]
    assert job_report(make_run(), Parts(failure=failure), "tiny")["dataset"] is None


def test_a_job_between_its_stages_is_running_and_an_interrupted_one_is_not_failed(make_run: Runs) -> None:
    assert (
        job_report(make_run(), Parts(results={"prepare": PREPARE.document()}), "tiny")["state"] == "Running"
    )
    stopped = Parts(failure=Failure("Train", "Interrupted", "stopped"))
    assert job_report(make_run(), stopped, "tiny")["state"] == "Interrupted"


def test_the_report_says_what_is_not_known_here(make_run: Runs) -> None:
    missing = job_report(make_run(), Parts(results=RESULTS), "tiny")["missing"]
    for word in ("status.plan", "on a CPU", "losses by step", "answers", "times of the stages"):
        assert [sentence for sentence in missing if word in sentence], word


def test_the_workspace_gives_the_results_of_this_spec_only(make_run: Runs, tmp_path: Path) -> None:
    run, layout = make_run(), WorkspaceLayout(tmp_path)
    write_marker(layout, "prepare", run.spec_hash, PREPARE.document())
    write_marker(layout, "train", "sha256:" + "f" * 64, TRAIN.document())
    write_json_atomically(layout.report / "training.json", {"steps": 1, "points": [], "heldOut": []})
    (layout.report / "evaluation.json").write_text("{")
    parts = read_parts(run, layout, known={"merge": MERGE.document()})
    assert parts.results.keys() == {"prepare", "merge"}
    assert parts.curve is not None
    assert parts.answers is None, "a broken document counts as missing"
