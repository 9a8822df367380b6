"""Properties of every estimate, and cases whose bytes can be computed by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.sizing.gpus.gpu import Gpu
from finetune_operator.sizing.memory.adapters import trained_tensors
from finetune_operator.sizing.memory.calibration import Calibration
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.families import FAMILIES
from finetune_operator.sizing.memory.shape import ModelShape, model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackProfile
from finetune_operator.sizing.memory.terms import Estimate, Phase
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from hypothesis import given
from hypothesis import strategies as st

MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": None,
}
GIB = 1 << 30


def needed(family: str, layers: int) -> dict[str, Any]:
    """Return members without which a family has experts, or only layers with attention."""
    if family == "granitemoehybrid":
        return {"num_local_experts": 0, "layer_types": ["attention"] * layers}
    return {"full_attn_idxs": list(range(0, layers, 3))} if family == "lfm2" else {}


documents = st.builds(
    lambda family, hidden, inner, layers, vocabulary: {
        "model_type": family,
        "hidden_size": 128 * hidden,
        "intermediate_size": 128 * inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 2 * hidden,
        "vocab_size": vocabulary,
        **needed(family, layers),
    },
    st.sampled_from(sorted(FAMILIES)),
    st.integers(2, 64),
    st.integers(2, 256),
    st.integers(1, 100),
    st.integers(1000, 300_000),
)
plans = st.builds(
    TrainingPlan,
    st.integers(1, 20_000),
    st.integers(1, 16),
    st.integers(1, 16),
    st.booleans(),
    st.sampled_from([1, 8, 16, 64, 256]),
    st.sampled_from(["AllLinear", "AttentionOnly"]),
    st.booleans(),
    st.sampled_from(["Standard", "RankStabilized", "DoRA"]),
    st.sampled_from(["AdamW", "AdamW8Bit", "PagedAdamW8Bit"]),
    st.sampled_from(["Quantized", "Dequantized"]),
)
stacks = st.builds(
    StackProfile,
    quantization=st.sampled_from(["NF4DoubleQuant", "NF4", "Int8", "None"]),
    cast_to_float32=st.booleans(),
    adapter_dtype=st.sampled_from(["BFloat16", "Float32"]),
    optimizer=st.sampled_from([None, "AdamW", "AdamW8Bit", "PagedAdamW8Bit", "PagedAdamW32Bit", "Sgd"]),
    attention=st.sampled_from(["Sdpa", "SdpaMasked", "Flash", "Eager"]),
    loss=st.sampled_from(["SupervisedChunks", "TokenChunks", "FusedTile", "Liger", "FullLogits"]),
)


def peak(document: dict[str, Any], plan: TrainingPlan, stack: StackProfile = DEFAULT_STACK) -> int:
    return estimate(model_shape(document), plan, stack).peak_bytes


@given(documents, plans, stacks)
def test_terms_add_up_to_their_phases_and_the_largest_phase_is_the_peak(
    document: dict[str, Any], plan: TrainingPlan, stack: StackProfile
) -> None:
    found = estimate(model_shape(document), plan, stack)
    for phase in Phase:
        assert sum(term.bytes for term in found.terms if term.phase is phase) == found.phases[phase]
    assert all(isinstance(term.bytes, int) and term.bytes > 0 for term in found.terms)
    without_device = [size for phase, size in found.phases.items() if phase is not Phase.DEVICE]
    assert found.peak_bytes == max(without_device) == found.phases[found.bottleneck]
    assert found.device_bytes == found.peak_bytes + found.phases[Phase.DEVICE]
    assert found.visible_peak_bytes <= found.peak_bytes
    assert found.low_bytes <= found.device_bytes <= found.high_bytes


@given(documents, plans, stacks, st.integers(1, 5))
def test_a_larger_plan_or_model_never_needs_less(
    document: dict[str, Any], plan: TrainingPlan, stack: StackProfile, more: int
) -> None:
    before = peak(document, plan, stack)
    for larger in (
        replace(plan, micro_batch_size=plan.micro_batch_size + more),
        replace(plan, sequence_length=plan.sequence_length + more),
        replace(plan, rank=plan.rank + more),
        replace(plan, gradient_accumulation=plan.gradient_accumulation + more),
    ):
        assert peak(document, larger, stack) >= before
    layers = document["num_hidden_layers"] + more
    deeper = {**document, "num_hidden_layers": layers, **needed(document["model_type"], layers)}
    wider = {**document, "intermediate_size": document["intermediate_size"] + more}
    assert peak(deeper, plan, stack) >= before
    assert peak(wider, plan, stack) >= before


@given(documents, plans, stacks, st.integers(1, 50_000))
def test_a_larger_vocabulary_never_needs_less_except_for_a_partial_chunk(
    document: dict[str, Any], plan: TrainingPlan, stack: StackProfile, more: int
) -> None:
    """A chunk of logits has a whole number of positions, or a power of two, so its size varies by less than one."""
    larger = {**document, "vocab_size": document["vocab_size"] + more}
    chunked = stack.loss in {"SupervisedChunks", "Liger"}
    slack = 10 * larger["vocab_size"] + 64 * document["hidden_size"] * plan.tokens if chunked else 0
    assert peak(larger, plan, stack) + slack >= peak(document, plan, stack)


@given(documents, plans, stacks, st.integers(2, 64))
def test_a_rank_needs_buckets_for_its_gradients_while_it_trains(
    document: dict[str, Any], plan: TrainingPlan, stack: StackProfile, ranks: int
) -> None:
    shape = model_shape(document)
    alone = estimate(shape, plan, stack)
    found = estimate(shape, replace(plan, ranks=ranks), stack)
    trained = trained_tensors(shape, plan, stack)
    exact = trained.parameters * trained.width
    for phase in (Phase.LOAD, Phase.PREPARE, Phase.EVALUATION):
        assert found.phases[phase] == alone.phases[phase]
    more = found.phases[Phase.LOSS] - alone.phases[Phase.LOSS]
    assert exact <= more < exact + 512
    # The gradients are views of the buckets by then.
    assert (
        exact <= found.phases[Phase.OPTIMIZER] - alone.phases[Phase.OPTIMIZER] + trained.bytes < exact + 512
    )
    assert found.phases[Phase.RECOMPUTE] - alone.phases[Phase.RECOMPUTE] + 512 >= 0
    assert found.phases[Phase.RECOMPUTE] - alone.phases[Phase.RECOMPUTE] <= more


@given(documents, plans, stacks)
def test_each_rung_of_the_ladder_needs_no_more(
    document: dict[str, Any], plan: TrainingPlan, stack: StackProfile
) -> None:
    saved = peak(document, replace(plan, gradient_checkpointing=False), stack)
    again = peak(document, replace(plan, gradient_checkpointing=True), stack)
    shape = model_shape(document)
    # With one layer, checkpointing saves nothing. A layer that runs again needs the gradients of its output at the same
    # time, a few hidden states. DoRA's norm of a matrix does not shrink with the tokens, and it is then computed while
    # the gradients of all later adapters are allocated.
    if shape.layers > 2:
        terms = estimate(shape, plan, stack).terms
        later = next(term.bytes for term in terms if term.name == "adapter") if plan.variant == "DoRA" else 0
        assert again <= saved + later + 16 * shape.hidden * plan.tokens + 4096
    assert peak(document, replace(plan, dropout=False), stack) <= peak(
        document, replace(plan, dropout=True), stack
    )


@given(documents, plans)
def test_stronger_quantization_never_needs_more(document: dict[str, Any], plan: TrainingPlan) -> None:
    plan = replace(plan, weights="Quantized")
    loads = [
        estimate(model_shape(document), plan, replace(DEFAULT_STACK, quantization=name)).phases[Phase.LOAD]
        for name in ("NF4DoubleQuant", "NF4", "Int8", "None")
    ]
    # Below 64 x 256 x 64 weights a matrix's two code tables outweigh what they save.
    assert loads[0] <= loads[1] + 4096 * len(model_shape(document).linears) * model_shape(document).layers
    assert loads[1] <= loads[2] <= loads[3]


def test_mistral_in_four_bits_has_the_size_of_its_parts() -> None:
    """Half a byte for a weight, one for 64 and four for 16,384; two bytes for embedding, head and norms."""
    shape = model_shape(MISTRAL)
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    expected = matrices // 2 + matrices // 64 + 4 * matrices // (64 * 256)
    expected += 2 * (2 * 32768 * 4096 + 65 * 4096)
    found = estimate(shape, TrainingPlan(2048), DEFAULT_STACK).phases[Phase.LOAD]
    # Code tables and rounding come on top.
    assert expected < found < expected + 32 * 7 * 4096


def test_dequantized_weights_keep_their_constants_and_are_not_unpacked_again() -> None:
    shape = model_shape(MISTRAL)
    packed, plain = (
        estimate(shape, TrainingPlan(2048, weights=weights), DEFAULT_STACK)
        for weights in ("Quantized", "Dequantized")
    )

    def terms(found: Estimate, phase: Phase) -> dict[str, int]:
        return {term.name: term.bytes for term in found.terms if term.phase is phase}

    before, after = terms(packed, Phase.LOSS), terms(plain, Phase.LOSS)
    assert after["layer weights"] == 2 * shape.linear_weights == 4 * before["layer weights"]
    assert after["quantization constants"] == before["quantization constants"]
    assert set(after) == set(before)
    # The largest matrix is unpacked after all others, which are already in 16 bits.
    matrix = 4096 * 14336
    assert terms(plain, Phase.LOAD)["packed matrix"] == matrix // 2 + 4 * matrix // 64
    more = plain.phases[Phase.LOAD] - packed.phases[Phase.LOAD]
    assert more == 3 * before["layer weights"] + terms(plain, Phase.LOAD)["packed matrix"]


@given(documents, plans, stacks)
def test_smaller_states_never_need_more(
    document: dict[str, Any], plan: TrainingPlan, stack: StackProfile
) -> None:
    sizes = [
        peak(document, replace(plan, optimizer=optimizer), replace(stack, optimizer=None))
        for optimizer in ("AdamW", "AdamW8Bit", "PagedAdamW8Bit")
    ]
    if stack.adapter_dtype == "Float32":
        assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] == sizes[2]
    fixed = {
        peak(document, replace(plan, optimizer=optimizer), stack) for optimizer in ("AdamW", "AdamW8Bit")
    }
    assert len(fixed) == 1 or stack.optimizer is None


def test_a_cast_to_float32_doubles_an_unquantized_model() -> None:
    """Every parameter is in 32 bits while the model is prepared, and the largest one twice."""
    shape = model_shape(MISTRAL)
    stack = replace(DEFAULT_STACK, quantization="None", cast_to_float32=True)
    found = estimate(shape, TrainingPlan(2048), stack)
    assert found.phases[Phase.LOAD] == pytest.approx(2 * shape.parameters, rel=1e-6)
    prepared = 4 * shape.parameters + 2 * 32768 * 4096
    assert found.phases[Phase.PREPARE] == pytest.approx(prepared, rel=1e-6)
    assert found.device_bytes > 24 * GIB


def test_mistral_with_checkpointing_needs_less_than_half_of_a_24_gb_gpu() -> None:
    found = estimate(model_shape(MISTRAL), TrainingPlan(2048, 1, 16), DEFAULT_STACK)
    assert found.high_bytes < 12 * GIB


def test_capped_scores_are_separate_tensors() -> None:
    capped = model_shape({"model_type": "gemma2"})
    plan = TrainingPlan(8192)
    scores = sum(
        term.bytes
        for term in estimate(capped, plan, DEFAULT_STACK).terms
        if term.phase is Phase.RECOMPUTE and term.name == "attention scores"
    )
    pairs = capped.heads * plan.sequence_length**2
    assert 8 * pairs <= scores <= 16 * pairs


def test_a_gpu_of_an_older_generation_gets_the_smaller_workspace() -> None:
    shape = model_shape(MISTRAL)
    sizes = [
        estimate(shape, TrainingPlan(512), DEFAULT_STACK, gpu=Gpu("x", "Nvidia", 1, capability)).device_bytes
        for capability in ((8, 6), (9, 0), None)
    ]
    assert sizes[0] < sizes[1] == sizes[2]


def test_a_calibration_replaces_constants_and_says_so() -> None:
    shape, plan = model_shape(MISTRAL), TrainingPlan(2048)
    plain = estimate(shape, plan, DEFAULT_STACK)
    calibrated = estimate(
        shape, plan, DEFAULT_STACK, Calibration("of runs", 0.0, 0, 1.1, low_residual=0.0, high_residual=0.02)
    )
    assert calibrated.calibration == "of runs"
    assert calibrated.phases[Phase.DEVICE] < plain.phases[Phase.DEVICE]
    assert calibrated.peak_bytes > plain.peak_bytes
    assert calibrated.low_bytes == calibrated.device_bytes


def _calls(shape: ModelShape, plan: TrainingPlan) -> int:
    count = 0

    def trace(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(trace)
    try:
        estimate(shape, plan, DEFAULT_STACK)
    finally:
        sys.setprofile(None)
    return count


def test_the_work_does_not_grow_with_layers_or_tokens() -> None:
    """The bound counts calls, because a busy machine stretches time: it is under a millisecond on an idle one."""
    small = _calls(model_shape({**MISTRAL, "num_hidden_layers": 1}), TrainingPlan(16))
    large = _calls(model_shape({**MISTRAL, "num_hidden_layers": 400}), TrainingPlan(100_000, 64))
    assert abs(large - small) < 200
    assert large < 3000
