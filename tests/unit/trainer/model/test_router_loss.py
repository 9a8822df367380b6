"""The load-balancing loss of experts is the one of the model's own code, over tokens that are no padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.packed_attention import using_attention
from finetune_trainer.model.router_loss import router_loss, router_loss_obstacle
from finetune_trainer.proof.small_run import small_model
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.loss import Objective
from finetune_trainer.stages.train.passes import Pass, StepCollator
from transformers import AutoConfig

LENGTHS = (9, 4, 6)
ROWS = [torch.arange(5 * row + 3, 5 * row + 3 + length).tolist() for row, length in enumerate(LENGTHS)]


def model_of(kind: str, **members: Any) -> Any:
    model = small_model(AutoConfig.for_model(kind, **members))
    model.config._experts_implementation = "eager"
    return model


def one_pass(*, packed: bool, rows: list[list[int]]) -> Pass:
    examples = [{"input_ids": row, "labels": row} for row in rows]
    (found,) = StepCollator(Batching("Packed" if packed else "Grouped", 64, len(rows)))(examples).passes
    return found


def balance(model: Any, one: Pass, *, packed: bool) -> torch.Tensor:
    objective = Objective.of(model, 0.1)
    choice = attention_of(model.config, "cpu", packed=packed)
    with torch.no_grad(), using_attention(model, choice.implementation):
        found = objective.parts(model, one)[1]
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss", "olmoe", "phimoe", "jamba"])
def test_the_loss_of_padded_rows_is_that_of_the_models_own_code(kind: str) -> None:
    model = model_of(kind)
    one = one_pass(packed=False, rows=ROWS)
    # No row has the id of the padding.
    mask = one.input_ids != 0
    assert sorted(mask.sum(dim=1).tolist()) == sorted(LENGTHS)
    with torch.no_grad():
        own = model(
            input_ids=one.input_ids, attention_mask=mask.long(), output_router_logits=True, use_cache=False
        ).aux_loss
    assert float(balance(model, one, packed=False)) == pytest.approx(float(own), rel=1e-5)
    assert float(own) > 0


def test_padding_does_not_count() -> None:
    model = model_of("qwen3_moe")
    padded = balance(model, one_pass(packed=False, rows=ROWS), packed=False)
    packed = balance(model, one_pass(packed=True, rows=ROWS), packed=True)
    assert float(padded) == pytest.approx(float(packed), rel=1e-5)
    alone = balance(model, one_pass(packed=False, rows=ROWS[:1]), packed=False)
    assert float(alone) != pytest.approx(float(packed), rel=1e-3)


def test_the_loss_is_larger_the_more_tokens_go_to_the_same_experts() -> None:
    """It is 2 for two experts a token if all four get the same, and 4 if two of them get all."""
    found = router_loss(model_of("qwen3_moe"))
    even = torch.tensor([[90.0, 80.0, 0.0, 0.0], [0.0, 0.0, 90.0, 80.0]])
    same = even[:1].expand(2, -1)
    assert float(found.value((even, even), None)) == pytest.approx(2)
    assert float(found.value((same, same), None)) == pytest.approx(4)
    with pytest.raises(RuntimeError, match="found none"):
        found.value((), None)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("llama", "whose code has no such loss"),
        ("deepseek_v3", "whose code has no such loss"),
        ("doge", "whose loss takes other arguments"),
    ],
)
def test_a_model_without_such_a_loss_is_refused(kind: str, said: str) -> None:
    with pytest.raises(StageError, match=said) as caught:
        router_loss(model_of(kind))
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
    assert "routerAuxLossCoefficient" in caught.value.message


def test_a_hybrid_model_without_experts_is_refused() -> None:
    model = model_of("granitemoehybrid", num_local_experts=0)
    assert "without a layer of experts" in (router_loss_obstacle(model) or "")
