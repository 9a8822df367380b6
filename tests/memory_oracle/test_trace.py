"""The traced profile agrees with runs of all layers, for families with and without a closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.memory_trace import TraceRequest
from finetune_trainer.trace.command import traced

from tests.support.memory_oracle.comparison import TOO_LITTLE, TOO_MUCH, compare, trace_phases
from tests.support.memory_oracle.fake_run import plan_spec, run_fake
from tests.support.memory_oracle.published import BY_NAME, default_config

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
PLAN = TrainingPlan(512, 2)


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        replace(PLAN, gradient_accumulation=4),
        replace(PLAN, gradient_checkpointing=False),
        replace(PLAN, weights="Dequantized", optimizer="AdamW"),
        replace(PLAN, rank=256, sequence_length=32),
        replace(PLAN, variant="DoRA", dropout=True),
    ],
    ids=["checkpointing", "accumulated", "all saved", "dequantized", "gradients peak", "DoRA"],
)
def test_a_few_layers_give_the_peaks_of_all(plan: TrainingPlan) -> None:
    """Every phase, not only the largest one, up to the rounding of scalars."""
    found, expected = trace_phases(SMALL, plan), run_fake(SMALL, plan).phases
    for phase, peak in expected.items():
        assert found[phase] == pytest.approx(peak, rel=0.005), phase


def test_layers_of_several_kinds_give_the_peaks_of_all() -> None:
    mixed = {**SMALL, "model_type": "olmo3", "num_hidden_layers": 9, "sliding_window": 128}
    found, expected = trace_phases(mixed, PLAN), run_fake(mixed, PLAN).phases
    for phase, peak in expected.items():
        assert found[phase] == pytest.approx(peak, rel=0.005), phase


EXPERTS = {
    **SMALL,
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
}


@pytest.mark.parametrize(("variant", "checkpointing"), [("DoRA", True), ("Standard", False)])
def test_what_products_of_experts_keep_for_their_adapters_is_counted(
    variant: Any,
    checkpointing: bool,  # noqa: FBT001 -- a parameter
) -> None:
    """Dropout keeps a mask, and DoRA two results. Small matrices leave much to the rounding of their tables."""
    plan = TrainingPlan(
        512, 2, variant=variant, dropout=True, gradient_checkpointing=checkpointing, gradient_accumulation=2
    )
    found, expected = trace_phases(EXPERTS, plan), run_fake(EXPERTS, plan).phases
    for phase in ("Loss", "Recompute"):
        assert 0.995 * expected[phase] <= found[phase] <= 1.06 * expected[phase], phase


def test_all_layers_traced_as_a_whole_give_the_same_peaks() -> None:
    shallow = {**SMALL, "num_hidden_layers": 3}
    found, expected = trace_phases(shallow, PLAN, whole=True), trace_phases(shallow, PLAN)
    for phase, peak in expected.items():
        assert found[phase] == pytest.approx(peak, rel=0.001), phase


USUAL = (
    "vaultgemma",
    "diffllama",
    "nanochat",
    "hyperclovax",
    "qwen3_5_text",
    "gemma3n_text",
    "internlm3",
    "granite_swa",
)
FURTHER = (
    "apertus1p5_text",
    "bamba",
    "bitnet",
    "bloom",
    "codegen",
    "doge",
    "exaone",
    "falcon",
    "falcon_h1",
    "gemma4_text",
    "gpt_neo",
    "gptj",
    "iquestcoder",
    "minicpm3",
    "mpt",
    "olmo_hybrid",
    "opt",
    "persimmon",
    "recurrent_gemma",
    "youtu",
    "zamba2",
)


CHEAP = ("CodeGen 350M", "Granite 3.1 1B A400M")
LONGEST = 120
"""Seconds of processor time that a trace may take."""
DEPENDENT = frozenset({"gemma3n_text", "gemma4_text", "zamba2"})
"""Those whose layers share values or modules, so that all of them run."""


@pytest.mark.parametrize("kind", [*USUAL, *(pytest.param(name, marks=pytest.mark.full) for name in FURTHER)])
def test_a_family_without_a_closed_form_is_traced_within_three_percent(kind: str) -> None:
    document = default_config(kind)
    found = max(trace_phases(document, PLAN, whole=kind in DEPENDENT).values())
    peak = run_fake(document, PLAN).peak_bytes
    assert TOO_LITTLE * peak <= found <= TOO_MUCH * peak, f"{found / peak - 1:+.2%} of {peak / 2**30:.3f} GiB"


@pytest.mark.parametrize(
    "name", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.full) for name in BY_NAME]
)
def test_the_trace_of_a_published_model_is_that_of_all_its_layers(name: str) -> None:
    """Experts of the run are TRAIN's own: packed, and one after another."""
    found = compare(BY_NAME[name])
    assert found.agrees, f"{found.share - 1:+.2%}, {found}"
    assert found.seconds <= LONGEST


@pytest.mark.parametrize(
    "plan",
    [
        TrainingPlan(7, 8),
        TrainingPlan(300, 8, gradient_checkpointing=False),
        TrainingPlan(7, gradient_accumulation=2, rank=64),
    ],
    ids=["short rows", "all saved", "accumulated"],
)
def test_every_way_to_train_a_mixture_is_traced_within_three_percent(plan: TrainingPlan) -> None:
    """With four layers, a mixture shows every kind of layer and of memory.

    With few tokens and a high rank, most of an accumulating pass is gradients of experts.
    """
    found = compare(replace(BY_NAME["OLMoE 7B A1B"].with_layers(4), plan=plan))
    assert found.agrees, f"{found.share - 1:+.2%}, {found}"


def test_matrices_are_unpacked_in_layers_and_not_in_the_head() -> None:
    """An unpacked matrix is as large as a tenth of this model's peak."""
    document = {**default_config("gpt2"), "vocab_size": 8192, "n_embd": 1024, "n_layer": 4, "n_head": 16}
    plan = TrainingPlan(64)
    found, expected = trace_phases(document, plan), run_fake(document, plan).phases
    for phase, peak in expected.items():
        assert found[phase] == pytest.approx(peak, rel=0.03), phase


def test_layers_that_depend_on_each_other_run_all_together() -> None:
    document = {**default_config("gemma3n_text"), "num_hidden_layers": 10, "num_kv_shared_layers": 5}
    document |= {name: document[name][:10] for name in ("layer_types", "intermediate_size")}
    document["activation_sparsity_pattern"] = [0.0] * 10
    answer = traced(TraceRequest(training=plan_spec(PLAN).training, config=document, length=64))
    assert answer.trace is not None, answer.problem
    with pytest.raises(RuntimeError, match="shape"):
        trace_phases(document, PLAN)


def test_the_answer_has_all_ways_modules_and_optimizers() -> None:
    training = plan_spec(TrainingPlan(512, 2, 2)).training
    answer = traced(TraceRequest(training=training, config=SMALL, length=512))
    found = answer.trace
    assert found is not None, answer.problem
    layer = 2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 1024
    assert (found.quantized.modules, found.quantized.parameters) == (7 * 7, 7 * layer)
    assert found.embeddings is not None
    assert found.embeddings.parameters == 2 * 8192 * 512
    assert found.adapted.modules == 49
    assert found.adapted.parameters == 7 * 16 * (2 * 1024 + 2 * 640 + 3 * 1536)
    assert found.adapted.bytes == 4 * found.adapted.parameters
    assert found.optimizers["AdamW"] >= 8 * found.adapted.parameters
    assert found.optimizers["AdamW8Bit"] < found.optimizers["AdamW"] / 3
    assert {row[:3] for row in found.rungs} == {
        (rows, again, unpacked) for rows in (1, 2, 4) for again in (0, 1) for unpacked in (0, 1)
    }
    assert [row[0] for row in found.lengths] == [256, 128, 64]
    recompute = {row[:3]: row[5] for row in found.rungs}
    assert recompute[1, 1, 0] < recompute[2, 1, 0] < recompute[2, 0, 0]


def test_the_time_bounds_the_ways_and_the_first_one_is_always_there() -> None:
    training = plan_spec(PLAN).training
    ticks = iter(range(0, 10_000, 60))
    answer = traced(TraceRequest(training=training, config=SMALL, length=512), lambda: next(ticks))
    assert answer.trace is not None
    assert 1 <= len(answer.trace.rungs) <= 3


@pytest.mark.parametrize(
    "config",
    [{"model_type": "nobody_knows"}, {}, {"model_type": "llama", "hidden_size": 7, "num_attention_heads": 2}],
)
def test_a_model_that_cannot_be_built_is_a_problem_and_no_crash(config: dict[str, Any]) -> None:
    answer = traced(TraceRequest(training=plan_spec(PLAN).training, config=config, length=64))
    assert answer.trace is None
    assert answer.problem


def test_experts_count_in_nf4_with_one_matrix_unpacked() -> None:
    """The default config of Qwen3 MoE is that of a model with 128 experts in each of 24 layers."""
    document = default_config("qwen3_moe")
    small = plan_spec(replace(PLAN, target_modules="AttentionOnly")).training
    answer = traced(TraceRequest(training=small, config=document, length=512))
    found = answer.trace
    assert found is not None, answer.problem
    assert found.experts is not None
    experts = 128 * 24 * 3 * 2048 * 768
    assert found.experts.parameters == experts
    assert 0.515 * experts < found.experts.bytes < 0.53 * experts
    resident = found.experts.bytes + found.quantized.bytes + found.adapted.bytes
    resident += sum(group.bytes for group in (found.embeddings, found.other) if group is not None)
    load, loss, *_ = (1024 * size for size in found.rungs[0][3:])
    assert resident <= load <= 1.05 * resident
    assert load + 4 * 2048 * 768 < loss < 1.3 * resident


def test_the_logits_of_routers_count_until_the_backward_pass() -> None:
    """Softmax and choice of the load-balancing loss take several times the logits, for one layer at a time."""
    document = {**default_config("qwen3_moe"), "num_hidden_layers": 4}
    training = plan_spec(PLAN).training
    balanced = training.model_copy(update={"router_aux_loss_coefficient": 0.01})
    peaks = []
    for one in (training, balanced):
        answer = traced(TraceRequest(training=one, config=document, length=512))
        assert answer.trace is not None, answer.problem
        row = answer.trace.rungs[0]
        peaks.append([1024 * size for size in row[3:]])
    (load, loss, *_), (same, more, *_) = peaks
    logits = 4 * 128 * 512 * row[0] * 2
    assert load == same
    assert logits <= more - loss <= 16 * logits
