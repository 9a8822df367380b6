"""A model of a family without a formula is sized when PREPARE has traced it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import CreateJob, SuspendJob

from tests.support.memory_traces import memory_trace
from tests.support.operator import CONFIG, make_inventory, make_progress
from tests.support.world import A100, SMALL, World, prepared, preparing, stalled

UNKNOWN: dict[str, Any] = {"model_type": "qwen3_5_text", "hidden_size": 4096, "num_hidden_layers": 32}


def traced(world: World, gibibytes: float, config: dict[str, Any] = UNKNOWN) -> None:
    """Let PREPARE report a trace."""
    world.progress = make_progress(
        Stage.PREPARE, activity="TracingMemory", config=config, trace=memory_trace(gibibytes)
    )


GRANITE_4: dict[str, Any] = {
    "model_type": "granitemoehybrid",
    "hidden_size": 1536,
    "num_hidden_layers": 40,
    "num_local_experts": 64,
    "layers_block_type": "attention=4 mamba=36",
}
"""A mixture with state spaces, of a family whose dense models have a formula."""


@pytest.mark.parametrize(
    "config", [GRANITE_4, {**GRANITE_4, "num_local_experts": 0}], ids=["experts", "mamba"]
)
def test_a_model_outside_of_its_familys_formula_is_sized_by_its_trace(config: dict[str, Any]) -> None:
    world = preparing(config)
    world.settle()
    assert list(world.children) == ["demo-prepare-0"]
    assert world.condition("Stalled") == ("False", "Progressing")
    world = prepared(config, model={"trace": memory_trace(30)})
    world.inventory = make_inventory(SMALL, A100)
    world.settle()
    assert list(world.children) == ["demo-train-0"]


def test_an_unknown_family_is_prepared_until_its_trace_is_there() -> None:
    world = preparing(UNKNOWN)
    world.settle()
    assert list(world.children) == ["demo-prepare-0"]
    assert world.condition("Stalled") == ("False", "Progressing")


def test_a_traced_model_that_fits_nowhere_is_held_before_its_weights_are_fetched() -> None:
    world = preparing(UNKNOWN)
    world.settle()
    traced(world, 500)
    child = world.children["demo-prepare-0"]
    decision = world.step()
    assert SuspendJob(child.name, child.uid, True, child.resource_version) in decision.actions
    assert stalled(world)[3] == "DoesNotFit"
    message = {entry["type"]: entry for entry in world.job.status["conditions"]}["Stalled"]["message"]
    assert "quantized weights" in message
    world.progress, world.pods = None, {}
    world.settle()
    assert stalled(world)[3] == "DoesNotFit", "the trace outlives the trainer that reported it"


def test_a_mixture_that_fits_nowhere_is_held_with_the_bytes_of_its_experts() -> None:
    world = preparing(UNKNOWN)
    world.settle()
    experts = {"modules": 4608, "parameters": 80 << 30, "bytes": 40 << 30}
    trace = {**memory_trace(60), "quantized": {"modules": 2, "parameters": 2 << 30, "bytes": 1 << 30}}
    world.progress = make_progress(
        Stage.PREPARE, activity="TracingMemory", config=UNKNOWN, trace={**trace, "experts": experts}
    )
    child = world.children["demo-prepare-0"]
    decision = world.step()
    assert SuspendJob(child.name, child.uid, True, child.resource_version) in decision.actions
    assert stalled(world)[3] == "DoesNotFit"
    message = {entry["type"]: entry for entry in world.job.status["conditions"]}["Stalled"]["message"]
    assert "Its largest part is experts in NF4 (40.0 GiB" in message


def test_a_traced_model_is_trained_on_a_gpu_that_the_trace_fits() -> None:
    world = prepared(UNKNOWN, model={"trace": memory_trace(30)})
    world.inventory = make_inventory(SMALL, A100)
    world.settle()
    assert list(world.children) == ["demo-train-0"]
    plan = world.job.status["plan"]
    assert plan["gpu"]["product"] == "NVIDIA A100 80GB"
    assert plan["training"]["sequenceLength"] == 60
    assert {term["name"] for term in plan["memory"]["terms"]} >= {"quantized weights", "adapter"}
    assert any(choice["name"] == "learningRate" for choice in plan["choices"])


def test_a_trace_in_the_progress_is_kept_if_the_result_has_no_room_for_it() -> None:
    world = preparing(UNKNOWN)
    traced(world, 10)
    world.settle()
    assert json.loads(world.job.status["model"]["trace"])["rank"] == 16


@pytest.mark.parametrize("problem", [None, "KeyError: 'heads'"])
def test_an_unknown_family_without_a_trace_fails_after_prepare(problem: str | None) -> None:
    world = prepared(UNKNOWN, model={} if problem is None else {"traceProblem": problem})
    world.settle()
    assert world.condition("Succeeded") == ("False", "ModelSizeUnknown")
    message = {entry["type"]: entry for entry in world.job.status["conditions"]}["Succeeded"]["message"]
    assert "no trace" in message
    assert problem is None or problem in message


@pytest.mark.parametrize("rungs", [[[1, 0, 1, 1, 1, 1, 1, 1]], [[4, 1, 1, 1, 1, 1, 1, 1]]])
def test_a_trace_that_says_nothing_about_any_plan_is_no_trace(rungs: list[list[int]]) -> None:
    world = prepared(UNKNOWN, model={"trace": memory_trace(1, length=30, rungs=rungs)})
    decision = world.step()
    assert not any(isinstance(action, CreateJob) for action in decision.actions)
    assert world.condition("Succeeded") == ("False", "ModelSizeUnknown")


def test_a_formula_that_differs_from_the_trace_is_a_warning_and_the_trace_decides() -> None:
    world = prepared(CONFIG, model={"trace": memory_trace(30)})
    world.inventory = make_inventory(SMALL, A100)
    world.settle()
    plan = world.job.status["plan"]
    assert plan["gpu"]["product"] == "NVIDIA A100 80GB"
    assert any("by formula and by trace" in warning and "GiB" in warning for warning in plan["warnings"])


def test_a_trace_that_cannot_size_a_known_family_leaves_it_to_the_formula() -> None:
    world = prepared(CONFIG, model={"trace": memory_trace(30, length=30)})
    world.settle()
    assert list(world.children) == ["demo-train-0"]
    assert "warnings" not in world.job.status["plan"]
