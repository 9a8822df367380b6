"""What ranks agree on before a step, and the gradients that DDP adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.packed_attention import using_attention
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.passes import Step, StepCollator
from finetune_trainer.stages.train.ranks.gradients import Gradients, SharedGradients, step_seed
from finetune_trainer.stages.train.ranks.group import ProcessGroup, Ranks
from finetune_trainer.stages.train.ranks.usage import RankUsage
from finetune_trainer.termination import Terminated
from peft import LoraConfig, get_peft_model
from torch import distributed
from transformers import AutoModelForCausalLM, LlamaConfig

_ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    {"input_ids": [3, 4, 5], "labels": [-100, 4, 5]},
    {"input_ids": [8, 1, 2, 3], "labels": [-100, 1, -100, 3]},
]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[ProcessGroup]:
    """Yield a group with this process alone: every collective is real."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        yield ProcessGroup()
    finally:
        distributed.destroy_process_group()


class _Told(Ranks):
    """Three ranks of which the others say what a test wants."""

    rank, size = 1, 3

    def __init__(self, others: Sequence[Sequence[float]]) -> None:
        self._others = others

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        return [list(self._others[0]), list(numbers), list(self._others[1])]


def _model(dropout: float = 0.0) -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lora = LoraConfig(r=2, lora_alpha=4, lora_dropout=dropout, target_modules=["q_proj", "down_proj"])
    adapted = get_peft_model(base, lora)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return adapted.train()


def _step(model: Any, gradients: Gradients, kind: Any = "AsDrawn") -> tuple[float, dict[str, torch.Tensor]]:
    step = StepCollator(Batching(kind, 5, 1))(_ROWS)
    total = torch.zeros(())
    attention = attention_of(model.config, "cpu", packed=kind == "Packed")
    with using_attention(model, attention.implementation), gradients.of_step(1):
        for place, one in enumerate(step.passes, start=1):
            with gradients.of_pass(last=place == len(step.passes)):
                part = gradients.parts(model, one)[0] / step.learned
                part.backward()
            total += part.detach()
    named = model.named_parameters()
    return float(gradients.total(total)), {n: v.grad.clone() for n, v in named if v.grad is not None}


@pytest.mark.parametrize("kind", ["AsDrawn", "Packed"])
def test_shared_gradients_of_one_rank_are_its_own_bit_for_bit(group: ProcessGroup, kind: str) -> None:
    model = _model()
    expected = _step(model, Gradients(), kind)
    for value in model.parameters():
        value.grad = None
    shared = SharedGradients(model, group, 1)
    loss, found = _step(model, shared, kind)
    shared.close()
    assert loss == expected[0]
    assert found.keys() == expected[1].keys()
    assert all(torch.equal(found[name], value) for name, value in expected[1].items())


def test_a_closed_replica_changes_no_gradient(group: ProcessGroup) -> None:
    """The probe has a replica of its own, and the training another one."""
    model = _model()
    expected = _step(model, Gradients())[1]
    for _ in range(2):
        shared = SharedGradients(model, group, 1)
        for value in model.parameters():
            value.grad = None
        found = _step(model, shared)[1]
        shared.close()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_buckets_are_as_large_as_the_adapter_alone(group: ProcessGroup) -> None:
    """The operator counts so many bytes for each rank (`sizing.memory.adapters.bucket_items`)."""
    model = _model()
    shared = SharedGradients(model, group, 1)
    _step(model, shared)
    sizes = str(shared._replica._get_ddp_logging_data()["bucket_sizes"])
    trained = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    assert sum(map(int, sizes.split(","))) == trained
    shared.close()


def test_the_passes_of_a_step_leave_the_generators_as_they_were(group: ProcessGroup) -> None:
    """The order of the rows is drawn from them on every rank."""
    model = _model(dropout=0.5)
    shared = SharedGradients(model, group, 1)
    before = torch.random.get_rng_state()
    first = _step(model, shared)[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert _step(model, shared)[0] == first
    shared.close()


def test_every_rank_and_step_draws_other_random_numbers() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (1, 2) for step in range(20) for rank in range(8)}
    assert len(seeds) == 2 * 20 * 8
    assert all(0 <= seed < 1 << 64 for seed in seeds)


def _told(group: ProcessGroup, others: Sequence[Sequence[float]]) -> SharedGradients:
    shared = SharedGradients(_model(), group, 1)
    shared._ranks = _Told(others)
    return shared


def test_a_stop_of_one_rank_stops_all_before_the_same_step_and_names_it(group: ProcessGroup) -> None:
    shared = _told(group, [[0, 7, 0.5, 0, 0], [15, 7, 0.5, 0, 0]])
    with pytest.raises(Terminated, match=r"^SIGTERM of rank 2$"):
        shared.begin(Step((), 0, 0, digest=7), 4, None)


def test_a_stop_of_all_ranks_names_the_signal_alone(group: ProcessGroup) -> None:
    shared = _told(group, [[15, 7, 0.5, 0, 0], [15, 7, 0.5, 0, 0]])
    with pytest.raises(Terminated, match=r"^SIGTERM$"):
        shared.begin(Step((), 0, 0, digest=7), 4, "SIGTERM")


def test_ranks_that_draw_other_rows_end_the_run(group: ProcessGroup) -> None:
    shared = _told(group, [[0, 7, 0.5, 0, 0], [0, 8, 0.5, 0, 0]])
    with pytest.raises(RuntimeError, match="same rows for step 4, found others on rank 2"):
        shared.begin(Step((), 0, 0, digest=7), 4, None)


def test_only_the_first_rank_keeps_what_all_took_for_the_step_before(group: ProcessGroup) -> None:
    shared = _told(group, [[0, 7, 0.5, 10, 20], [0, 7, 2.0, 30, 1 << 42]])
    with shared.of_step(2):
        pass
    shared.begin(Step((), 0, 0, digest=7), 3, None)
    assert not shared.rank_usage
    shared._ranks.rank = 0
    shared.begin(Step((), 0, 0, digest=7), 4, None)
    first, own, last = shared.rank_usage
    assert (first, last) == (RankUsage(0.5, 10, 20), RankUsage(2.0, 30, 1 << 42))
    assert (own.seconds, own.device_bytes) == (0.0, 0)
    assert own.host_bytes > 1 << 20


def test_before_its_first_step_no_rank_has_taken_anything(group: ProcessGroup) -> None:
    shared = _told(group, [[0, 7, 0.0, 10, 20], [0, 7, 0.0, 30, 40]])
    shared._ranks.rank = 0
    shared.begin(Step((), 0, 0, digest=7), 1, None)
    assert shared.rank_usage == ()
