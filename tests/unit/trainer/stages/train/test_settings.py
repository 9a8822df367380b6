from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.stages.train.settings import (
    lora_config,
    optimizer_name,
    planned_steps,
    sft_config,
    target_modules,
)

MODULES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.o_proj",
    "model.layers.0.mlp.up_proj",
]


@pytest.fixture
def make_training(run_document: dict[str, Any], make_run: Callable[..., RunSpec]) -> Callable[..., RunSpec]:
    def make(**changes: Any) -> RunSpec:
        return make_run(training={**run_document["training"], **changes})

    return make


@pytest.mark.parametrize(
    ("epochs", "examples", "steps"),
    [(1, 8, 2), (1, 9, 3), (2, 9, 6), (0.5, 8, 1), (0.01, 8, 1), (1.5, 16, 6)],
)
def test_an_epoch_has_a_step_for_its_last_batch_even_if_it_is_not_full(
    make_training: Callable[..., RunSpec], epochs: float, examples: int, steps: int
) -> None:
    """Batches have 4 examples in micro-batches of 2."""
    run = make_training(epochs=epochs, maximumSteps=None)
    assert planned_steps(examples, run.training) == steps


def test_maximum_steps_decide_alone(make_training: Callable[..., RunSpec]) -> None:
    assert planned_steps(1000, make_training(maximumSteps=7).training) == 7


def test_modules_are_named_by_their_last_part_unless_that_is_ambiguous() -> None:
    assert target_modules("AllLinear", MODULES) == ["o_proj", "q_proj", "up_proj"]
    assert target_modules("AttentionOnly", MODULES) == ["o_proj", "q_proj"]
    ambiguous = [*MODULES, "model.layers.0.mlp.q_proj"]
    assert target_modules("AttentionOnly", ambiguous) == sorted(MODULES[:2])


@pytest.mark.parametrize(
    ("variant", "rslora", "dora"),
    [("Standard", False, False), ("RankStabilized", True, False), ("DoRA", False, True)],
)
def test_the_variant_chooses_pefts_method(
    make_training: Callable[..., RunSpec],
    run_document: dict[str, Any],
    variant: str,
    *,
    rslora: bool,
    dora: bool,
) -> None:
    lora = {**run_document["training"]["lora"], "variant": variant}
    config = lora_config(make_training(lora=lora).training.lora, MODULES)
    assert (config.use_rslora, config.use_dora) == (rslora, dora)
    assert (config.r, config.lora_alpha, config.bias) == (4, 8, "none")


def test_warmup_is_a_rounded_up_share_of_all_steps(
    make_training: Callable[..., RunSpec], tmp_path: Path
) -> None:
    run = make_training(schedule={"type": "Constant", "warmupRatio": 0.1})
    config = sft_config(run, tmp_path, 25)
    assert config.warmup_steps == math.ceil(2.5)
    assert config.lr_scheduler_type == "constant_with_warmup"
    assert (config.max_steps, config.gradient_accumulation_steps) == (25, 1)
    assert config.max_length is None, "rows are never cut"
    assert not config.packing


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, "paged_adamw_8bit"),
        ("PagedAdamW8Bit", "paged_adamw_8bit"),
        ("AdamW8Bit", "adamw_8bit"),
        ("AdamW", "adamw_torch_fused"),
    ],
)
def test_a_gpu_takes_the_named_optimizer_and_a_cpu_the_same_one_always(
    make_training: Callable[..., RunSpec], tmp_path: Path, named: str | None, expected: str
) -> None:
    """An earlier operator names none, and its trainers took the paged one."""
    members = {} if named is None else {"optimizer": named}
    on_cpu = make_training(**members)
    on_gpu = on_cpu.model_copy(update={"device": "cuda"})
    assert (optimizer_name(on_gpu), optimizer_name(on_cpu)) == (expected, "adamw_torch")
    assert sft_config(on_cpu, tmp_path, 1).optim == "adamw_torch"
