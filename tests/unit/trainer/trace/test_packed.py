"""Sizes of packed parameters agree with a model that TRAIN has loaded and adapted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.run_spec import Lora
from finetune_trainer.model.describe import inspect_base_model
from finetune_trainer.model.load import quantized_modules
from finetune_trainer.model.packed_weight import PackedWeight, packed_adapters, packed_weights
from finetune_trainer.model.small_config import small_document
from finetune_trainer.proof.small_run import SmallRun
from finetune_trainer.trace.allocations import rounded
from finetune_trainer.trace.packed import AdaptedSizes, PackedSizes, packed_sizes
from finetune_trainer.trace.profile import Tracer
from transformers import AutoConfig

from tests.support.memory_oracle.fake_run import plan_spec

pytestmark = pytest.mark.slow

TENSORS = ("packed", "scales", "code", "nested", "nested_code", "offset")


def lora(**members: Any) -> Lora:
    return Lora.model_validate(
        {
            "rank": 4,
            "alpha": 8,
            "dropout": 0,
            "targetModules": "AllLinear",
            "variant": "Standard",
            **members,
        }
    )


def sizes_of(folder: Path, kind: str, wanted: Lora) -> tuple[PackedSizes, Any]:
    """Return the computed sizes of a small model, and the model that TRAIN has adapted."""
    run = SmallRun(folder, wanted)
    run.build(AutoConfig.for_model(kind))
    run.prepare()
    adapted = run.adapt()
    base = inspect_base_model(folder / "base")
    config = adapted.config.get_text_config()
    return packed_sizes(base.packed, quantized_modules(adapted), wanted, config), adapted


def storages(weight: PackedWeight) -> dict[int, int]:
    """Return the allocated bytes of a packed parameter by storage."""
    tensors = [getattr(rows, name) for parts in weight.parts for rows in parts for name in TENSORS]
    return {
        one.untyped_storage().data_ptr(): rounded(one.untyped_storage().nbytes())
        for one in tensors
        if isinstance(one, torch.Tensor)
    }


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("variant", ["Standard", "DoRA"])
def test_sizes_are_those_of_the_loaded_experts(tmp_path: Path, kind: str, variant: str) -> None:
    if (kind, variant) == ("gpt_oss", "DoRA"):
        variant = "RankStabilized"  # the trainer refuses DoRA on its transposed matrices
    found, adapted = sizes_of(tmp_path, kind, lora(variant=variant))
    weights = packed_weights(adapted)
    assert found.weights == sum(weight.parameter.elements for weight in weights.values())
    allocated: dict[int, int] = {}
    for weight in weights.values():
        allocated |= storages(weight)
    # Tables of loaded tensors may share memory, so a model can take less than it could.
    assert sum(allocated.values()) <= found.bytes <= 1.5 * sum(allocated.values())
    trained = packed_adapters(adapted)
    assert found.trained == sum(parameter.numel() for parameter in trained.values()) > 0
    assert found.trained_bytes == sum(parameter.nbytes for parameter in trained.values())
    largest = max(weight.parameter.rows * weight.parameter.columns for weight in weights.values())
    assert 2 * largest <= found.unpacked <= 4.1 * largest
    assert found.kept(0) < found.kept(1) < found.kept(2)


def adapter(layer: str, trained: int, saved: int) -> AdaptedSizes:
    return AdaptedSizes(layer, trained, factor=trained // 2, saved=saved, cast=2 * trained)


def test_a_backward_pass_needs_what_is_kept_or_the_gradients_that_replace_it() -> None:
    sizes = PackedSizes(unpacked=10, adapters=(adapter("a", 100, 8), adapter("a", 50, 4)))
    # All gradients, and those of the largest factor twice.
    assert sizes.backward(0, accumulates=False) == 4 * 150 + 4 * 50
    # All that is kept, and an unpacked matrix.
    assert sizes.backward(1000, accumulates=False) == sizes.kept(1000) + 10 == 12_000 + 300 + 10
    assert PackedSizes(unpacked=10).backward(1000, accumulates=True) == 10


def test_an_accumulating_pass_has_new_gradients_of_one_layer_only() -> None:
    layers = tuple(adapter(name, 100, 1) for name in "abc")
    sizes = PackedSizes(adapters=layers)
    assert sizes.backward(0, accumulates=False) == 3 * 400 + 200
    assert sizes.backward(0, accumulates=True) == 2 * layers[0].cast + 400 + 200


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "gpt2"])
def test_a_trace_counts_the_adapter_that_train_makes(tmp_path: Path, kind: str) -> None:
    _, adapted = sizes_of(tmp_path, kind, lora())
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    tracer = Tracer(
        json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8")),
        plan_spec(TrainingPlan(32, 1, rank=4)),
    )
    with tracer.tracing():
        assert tracer.adapter_parameters() == sum(parameter.numel() for parameter in trained)
        assert tracer.adapter_bytes() >= sum(parameter.nbytes for parameter in trained)


@pytest.mark.parametrize("kind", ["deepseek_v3", "gpt_oss"])
def test_the_sizes_of_all_layers_follow_from_those_of_the_traced_ones(kind: str) -> None:
    small = small_document(AutoConfig.for_model(kind).to_dict())
    small = {name: value for name, value in small.items() if not name.endswith("layer_types")}
    document = {
        **{name: value for name, value in small.items() if value is not None and name != "moe_layers"},
        "model_type": kind,
        "num_hidden_layers": 9,
    }
    run = plan_spec(TrainingPlan(32, 1, rank=4))
    few, all_of_them = Tracer(document, run), Tracer(document, run, whole=True)
    assert len(few.kinds) == 9
    assert few.census == all_of_them.census
    assert few.census.groups["Experts"].parameters > 0
    with few.tracing():
        parameters = few.adapter_parameters()
    with all_of_them.tracing():
        assert parameters == all_of_them.adapter_parameters()


def test_attention_alone_leaves_experts_without_an_adapter(tmp_path: Path) -> None:
    found, adapted = sizes_of(tmp_path, "qwen3_moe", lora(targetModules="AttentionOnly"))
    assert not packed_adapters(adapted)
    assert (found.trained, found.adapted, found.kept(9)) == (0, 0, 0)
    assert found.bytes < found.plain_bytes


def test_the_adapter_of_conv1d_is_left_to_the_fake_run(tmp_path: Path) -> None:
    found, adapted = sizes_of(tmp_path, "gpt2", lora())
    weights = packed_weights(adapted)
    assert found.weights == sum(weight.parameter.elements for weight in weights.values()) > 0
    assert (found.trained, found.adapted, found.kept(9)) == (0, 0, 0)
    assert not packed_adapters(adapted)


def test_a_dense_model_has_no_packed_parameters(tmp_path: Path) -> None:
    found, _ = sizes_of(tmp_path, "llama", lora())
    assert found == PackedSizes()
