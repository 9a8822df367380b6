"""What a tracker is told of a run."""

from __future__ import annotations

import json
import math

import pytest
from finetune_trainer.tracking.record import make_record, milliseconds

from tests.support.tracking import UID, record, report


def test_every_point_of_the_curve_is_a_metric_at_its_step() -> None:
    found = [each for each in record(3).metrics if each.key == "loss"]
    assert [(each.step, each.value) for each in found] == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert [each.step for each in record(3).metrics if each.key == "grad_norm"] == [2, 3], (
        "unknown values are left out"
    )
    assert [(each.step, each.value) for each in record(4).metrics if each.key == "eval_loss"] == [(2, 1.25)]


def test_results_are_metrics_at_the_last_step() -> None:
    found = {each.key: (each.step, each.value) for each in record(7).metrics}
    evaluation = report()["evaluation"]
    assert found["base_loss"] == (7, evaluation["baseLoss"])
    assert found["tuned_loss"] == (7, evaluation["tunedLoss"])
    assert found["merge_kl_divergence"] == (7, report()["merge"]["verification"]["klDivergence"])


def test_times_are_those_of_the_stages() -> None:
    found = record()
    assert (found.started, found.ended) == (
        milliseconds("2026-01-31T10:00:00.000Z"),
        milliseconds("2026-01-31T11:10:00.000Z"),
    )
    assert {each.time for each in found.metrics} == {milliseconds("2026-01-31T11:00:00.000Z")}
    assert milliseconds("1970-01-01T00:00:01.500Z") == 1500


def test_parameters_are_flat_and_texts() -> None:
    found = record().parameters
    assert found["model.name"] == "Qwen/Qwen3-8B"
    assert found["training.lora.rank"] == "16"
    assert found["dataset.format.name"] == "Messages"
    assert "model.commit" not in found, "an unknown value is no parameter"


def test_tags_identify_the_job_and_every_artifact() -> None:
    found, merge = record().tags, report()["merge"]
    assert found["finetune.uid"] == UID
    assert found["finetune.job"] == "team/bot"
    assert found["finetune.manifest"] == "sha256:" + "4" * 64
    for artifact in merge["artifacts"]:
        assert found[f"finetune.artifact.{artifact['kind'].lower()}.digest"] == artifact["digest"]


def test_the_merged_model_is_preferred_to_the_adapter() -> None:
    model = record().model
    assert model is not None
    assert model.kind == "Merged"
    only = report()
    only["merge"]["artifacts"] = [each for each in only["merge"]["artifacts"] if each["kind"] != "Merged"]
    model = make_record(only, UID).model
    assert model is not None
    assert model.kind == "Adapter"
    only["merge"] = None
    assert make_record(only, UID).model is None


@pytest.mark.parametrize(
    "missing", ["training", "evaluation", "merge", "curve", "timeline", "dataset", "base", "plan"]
)
def test_a_report_without_a_part_still_makes_a_record(missing: str) -> None:
    document = report(2)
    document[missing] = None
    assert make_record(document, UID).tags["finetune.uid"] == UID
    del document[missing]
    assert make_record(document, UID).tags["finetune.uid"] == UID


def test_numbers_that_json_cannot_hold_are_left_out() -> None:
    document = report(2)
    document["curve"]["points"][0]["loss"] = math.nan
    document["curve"]["points"][1]["loss"] = math.inf
    assert "loss" not in {each.key for each in make_record(document, UID).metrics}


def test_equal_reports_have_equal_digests_and_others_have_not() -> None:
    again = make_record(json.loads(json.dumps(report())), UID, {"manifest": "sha256:" + "4" * 64})
    assert record().digest == again.digest
    assert record(399).digest != record(400).digest
    assert make_record(report(), UID).digest != record().digest
