"""The tests of the command compare whole documents with the schema; these are the single rules."""

from __future__ import annotations

import json

from finetune_cli.plan.document import document, unknown_model
from finetune_operator.api.plan import LearningRate
from finetune_operator.sizing.decision import decide_training
from finetune_operator.sizing.memory.calibration import NO_CALIBRATION
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from jsonschema import Draft202012Validator

from tests.support.repository import ROOT
from tests.support.sizing_jobs import feasible, infeasible, make_request, on_node, product, sized

SCHEMA = Draft202012Validator(json.loads((ROOT / "contract" / "plan.schema.json").read_text("utf-8")))
RATE = LearningRate(0.00012, "a rule")


def test_a_feasible_job_has_its_choices_as_reasons_and_no_change() -> None:
    request = make_request()
    decision = feasible(decide_training(request, [on_node(product("NVIDIA L4"), "gpu-1")]))
    found = document(request, decision, RATE)
    SCHEMA.validate(found)
    assert (found["fits"], found["verdict"], found["change"]) == (True, "Fits", None)
    assert len(found["reasons"]) == len(found["choices"]) == len(decision.choices) + 1
    assert found["choices"][-1] == {"name": "learningRate", "value": "0.00012", "reason": "a rule"}
    assert found["chosen"]["learningRate"] == 0.00012
    given = document(request, decision, LearningRate(0.00012))
    assert len(given["choices"]) == len(decision.choices), "a given value is no choice"
    assert [offer["node"] for offer in found["offers"]] == ["gpu-1"]
    assert found["gpu"]["computeCapability"] == "8.9"


def test_a_job_without_margin_is_borderline() -> None:
    request = make_request({"microBatchSize": 1, "gradientCheckpointing": "Require"})
    needed = infeasible(decide_training(request, [on_node(sized(1 << 30))])).estimate.device_bytes
    found = document(request, decide_training(request, [on_node(sized(needed))]), RATE)
    assert (found["fits"], found["verdict"]) == (True, "Borderline")


def test_an_infeasible_job_has_its_message_as_the_only_reason() -> None:
    request = make_request()
    decision = infeasible(decide_training(request, [on_node(sized(1 << 30))]))
    found = document(request, decision, RATE)
    SCHEMA.validate(found)
    assert (found["fits"], found["verdict"], found["offers"]) == (False, "DoesNotFit", [])
    assert found["reasons"] == [decision.message]
    assert found["deviceBytes"] > found["usableBytes"] == 1 << 30


def test_a_gpu_of_unknown_memory_has_no_usable_bytes() -> None:
    request = make_request()
    found = document(request, decide_training(request, [on_node(sized(None))]), RATE)
    SCHEMA.validate(found)
    assert (found["verdict"], found["usableBytes"]) == ("GpuMemoryUnknown", None)


def test_a_model_of_unknown_size_has_no_numbers() -> None:
    found = unknown_model("the model is a mixture of experts", DEFAULT_STACK, NO_CALIBRATION)
    SCHEMA.validate(found)
    assert found["reasons"] == ["the model is a mixture of experts"]
    assert (found["deviceBytes"], found["chosen"], found["phases"]) == (None, None, {})


def test_a_high_learning_rate_is_a_warning_that_rejects_nothing() -> None:
    request = make_request({"learningRate": 0.01})
    found = document(request, decide_training(request, [on_node(product("NVIDIA L4"))]), LearningRate(0.01))
    SCHEMA.validate(found)
    assert found["fits"]
    assert "above 0.003" in found["warnings"][0]
