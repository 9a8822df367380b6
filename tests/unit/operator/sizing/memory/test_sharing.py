from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import ModelShape, model_shape
from finetune_operator.sizing.memory.sharing import REPLICA, Gathered, gathered, own_weight_items
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.terms import Phase
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_operator.sizing.memory.weights import weight_items

from tests.support.sizing_jobs import mistral

LLAMA_70B = model_shape(
    {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    }
)
GIB = 1 << 30


def own(shape: ModelShape, ranks: int, *, dequantized: bool = False) -> dict[str, int]:
    items = own_weight_items(shape, DEFAULT_STACK, ranks, dequantized=dequantized)
    return {item.name: item.bytes for item in items}


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_rank_keeps_its_part_of_matrices_and_all_vectors(ranks: int) -> None:
    whole = {item.name: item.bytes for item in weight_items(mistral(), DEFAULT_STACK)}
    part = own(mistral(), ranks)
    for name in ("layer weights", "embedding", "output head"):
        assert part[name] == pytest.approx(whole[name] / ranks, rel=1e-3)
    assert part["norms and biases"] == whole["norms and biases"]
    # The second level of constants and the code tables are whole.
    assert whole["quantization constants"] / ranks < part["quantization constants"]
    assert part["quantization constants"] < whole["quantization constants"] * (1 / ranks + 0.05)


def test_dequantized_matrices_take_two_bytes_for_each_weight_of_the_part() -> None:
    part = own(mistral(), 4, dequantized=True)
    assert part["layer weights"] == 2 * mistral().linear_weights // 4
    assert part["quantization constants"] < own(mistral(), 4)["quantization constants"]


def test_two_copies_of_a_layer_exist_while_it_runs() -> None:
    found = gathered(mistral(), DEFAULT_STACK, 2, dequantized=False)
    weights = mistral().linear_weights // mistral().layers
    assert found.layer == weights // 2 + weights // 64
    assert found.embedding == found.head == 32768 * 4096 * 2
    assert found.running.bytes == found.last_backward.bytes == 2 * found.layer
    assert found.first_backward.bytes == found.layer
    assert found.beginning.bytes == 2 * found.embedding
    assert found.at_head.bytes == 2 * found.projecting.bytes == 2 * found.head
    assert found.answering.bytes == found.head + 2 * found.embedding


def test_a_tied_embedding_stays_until_the_loss() -> None:
    found = gathered(replace(mistral(), tied=True), DEFAULT_STACK, 2, dequantized=False)
    assert found.head == 0
    assert found.running.bytes == found.embedding + 2 * found.layer
    assert found.projecting.bytes == found.embedding
    assert found.answering.bytes == found.beginning.bytes == 2 * found.embedding + found.layer


def test_a_model_of_one_layer_has_no_layer_to_gather_early() -> None:
    assert Gathered(layer=7, layers=1).last_backward.bytes == 7


def test_a_replica_gathers_nothing() -> None:
    moments = (REPLICA.beginning, REPLICA.running, REPLICA.at_head, REPLICA.answering, REPLICA.last_backward)
    assert [item.bytes for item in moments] == [0] * 5


@pytest.mark.parametrize(("ranks", "fits"), [(2, [40]), (4, [24, 40])])
def test_seventy_billion_weights_on_gpus_that_hold_no_replica(ranks: int, fits: list[int]) -> None:
    plan = TrainingPlan(2048, optimizer="AdamW8Bit", ranks=ranks, parallelism="FullyShard")
    found = estimate(LLAMA_70B, plan, DEFAULT_STACK)
    # A GPU keeps a gibibyte or two for itself.
    usable = {24: 22 * GIB, 40: 39 * GIB}
    assert [size for size in usable if found.high_bytes <= usable[size]] == fits
    terms = {term.name: term.bytes for term in found.terms if term.phase is Phase.LOSS}
    # 68.5 billion weights in layers at half a byte, 207 million trained ones in float32, 80 layer inputs.
    assert terms["layer weights"] == pytest.approx(68.45e9 / 2 / ranks, rel=0.01)
    assert terms["adapter"] == terms["gradient buckets"] == pytest.approx(207e6 * 4, rel=0.01)
    assert terms["gathered weights"] == 2 * 128256 * 8192 * 2
    assert terms["layer inputs"] == 80 * 8192 * 2048 * 2
    replica = estimate(LLAMA_70B, replace(plan, parallelism="DataParallel"), DEFAULT_STACK)
    assert replica.device_bytes > 39 * GIB


def test_each_further_rank_lowers_the_memory_of_all() -> None:
    sizes = [
        estimate(
            LLAMA_70B, TrainingPlan(2048, ranks=ranks, parallelism="FullyShard"), DEFAULT_STACK
        ).device_bytes
        for ranks in (2, 3, 4, 8, 64)
    ]
    assert sizes == sorted(sizes, reverse=True)
