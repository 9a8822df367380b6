"""The oracle counts live tensors, has the tensors of a loaded model, and detects changes of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.model import load as quantized
from finetune_trainer.model import output_head as head
from finetune_trainer.model.load import load_quantized, quantized_modules
from finetune_trainer.stages.train import adapter, settings
from finetune_trainer.trace import fake_model
from finetune_trainer.trace.allocations import Allocations, rounded
from finetune_trainer.trace.fake_model import give_fake_tensors, plain_structure, quantized_structure
from peft.tuners.lora.layer import LoraLayer
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.memory_oracle import fake_run
from tests.support.memory_oracle.fake_run import FakePeaks, extrapolate, run_fake
from tests.support.memory_oracle.shallow import build_config
from tests.support.workspaces import prepare, write_base

pytestmark = pytest.mark.slow

_SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
_PLAN = TrainingPlan(sequence_length=1024, rank=16)
# r * (in + out) of q, k, v, o, gate, up and down, in two layers.
_ADAPTER = 16 * 2 * (2 * (512 + 512) + 2 * (512 + 128) + 3 * (512 + 1024))


@pytest.fixture(scope="module")
def before() -> FakePeaks:
    """The peaks of two layers with the unchanged trainer."""
    return run_fake(_SMALL, _PLAN, 2)


def test_allocations_count_live_tensors_and_keep_the_peak_of_each_phase() -> None:
    with FakeTensorMode(), Allocations() as tracked:
        tracked.enter("First")
        kept = torch.empty(1000, dtype=torch.uint8)
        view = kept[:10].add_(1)
        gone = torch.empty(3000, dtype=torch.float32)
        del gone
        tracked.enter("Second")
        copy = kept.clone()
    assert rounded(1000) == 1024
    assert tracked.peaks == {"First": 1024 + 12288, "Second": 2048}
    assert tracked.current == 2048
    del kept, copy
    # The view keeps its storage alive.
    assert tracked.current == 1024
    del view
    assert tracked.current == 0


def test_the_skeleton_has_the_tensors_of_a_loaded_checkpoint(tmp_path: Path) -> None:
    """Covers all tensors of 4-bit modules, and the unquantized ones in 16 bits instead of a CPU's 32."""
    write_base(tmp_path / "base", "mistral")
    layout = prepare(tmp_path / "workspace", tmp_path / "base")
    loaded = load_quantized(layout.quantized_model, "cpu")
    document = {**loaded.config.to_dict(), "quantization_config": None}
    fake = quantized_structure(plain_structure(build_config(document, None)))
    with FakeTensorMode():
        give_fake_tensors(fake)
    found, expected = quantized_modules(fake), quantized_modules(loaded)
    assert found.keys() == expected.keys()
    for name, module in expected.items():
        assert _packed(found[name]) == _packed(module), name
    others = {name: p.numel() for name, p in loaded.named_parameters() if p.is_floating_point()}
    assert {n: p.numel() for n, p in fake.named_parameters() if p.is_floating_point()} == others
    assert {p.dtype for p in fake.parameters() if p.is_floating_point()} == {torch.bfloat16}


def _packed(module: Any) -> list[tuple[int, torch.dtype]]:
    state = module.weight.quant_state
    tensors = (module.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return [(tensor.numel(), tensor.dtype) for tensor in tensors]


def test_peaks_are_linear_in_the_number_of_layers() -> None:
    """The extrapolation from two and four layers equals the peak of six layers, except for a scalar's rounding."""
    guessed, found = extrapolate(_SMALL, _PLAN), run_fake(_SMALL, _PLAN)
    for phase, peak in found.phases.items():
        assert abs(guessed.phases[phase] - peak) <= 4096, phase
    assert found.peak_bytes == max(found.phases.values())


def test_peaks_are_linear_for_alternating_kinds_of_layers() -> None:
    """Windowed layers, which need a mask here, alternate with full ones."""
    mixed = {**_SMALL, "model_type": "olmo3", "num_hidden_layers": 9, "sliding_window": 256}
    assert build_config(mixed, 4).layer_types == build_config(mixed, None).layer_types[-4:]
    assert len(set(build_config(mixed, 4).layer_types)) == 2
    guessed, found = extrapolate(mixed, _PLAN), run_fake(mixed, _PLAN)
    for phase, peak in found.phases.items():
        assert guessed.phases[phase] == pytest.approx(peak, rel=0.002), phase


def test_a_tied_embedding_is_held_once(before: FakePeaks) -> None:
    tied = run_fake({**_SMALL, "tie_word_embeddings": True}, _PLAN, 2)
    assert before.phases["Load"] - tied.phases["Load"] == 8192 * 512 * 2


def test_evaluation_needs_less_than_training(before: FakePeaks) -> None:
    for peaks in (before, run_fake(_SMALL, TrainingPlan(256, micro_batch_size=8, rank=1), 2)):
        phases = peaks.phases
        assert phases["Evaluation"] <= max(phases["Loss"], phases["Recompute"])


def test_an_adapter_in_16_bits_lowers_the_peak(before: FakePeaks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trained parameter and its gradient take two bytes less each. There are no gradients yet at the peak."""
    own = adapter.add_adapter

    def narrow(*arguments: Any) -> Any:
        adapted = own(*arguments)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        return adapted

    monkeypatch.setattr(fake_run, "add_adapter", narrow)
    after = run_fake(_SMALL, _PLAN, 2)
    assert before.phases["Optimizer"] - after.phases["Optimizer"] == pytest.approx(4 * _ADAPTER, rel=0.02)
    assert before.peak_bytes - after.peak_bytes == pytest.approx(2 * _ADAPTER, rel=0.02)


@pytest.mark.parametrize("layers", [1, 2])
def test_inputs_cast_to_the_adapters_type_would_raise_the_peak(
    monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    """peft casts the input of every adapted matrix to float32, and keeps the copies for the backward pass.

    With checkpointing one layer's copies exist at a time, and without it those of both layers.
    """
    plan = TrainingPlan(1024, gradient_checkpointing=layers == 1)
    before = run_fake(_SMALL, plan, 2)
    own = adapter.add_adapter

    def casting(*arguments: Any) -> Any:
        adapted = own(*arguments)
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled = True
        return adapted

    monkeypatch.setattr(fake_run, "add_adapter", casting)
    after = run_fake(_SMALL, plan, 2)
    # The inputs of q, k, v, o, gate and up have 512 elements, that of down has 1,024.
    copies = layers * 4 * 1024 * (6 * 512 + 1024)
    assert after.phases["Recompute"] - before.phases["Recompute"] > copies // 2


def test_another_optimizer_changes_the_peak(before: FakePeaks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each parameter has two optimizer states of 4 bytes instead of 1 byte."""
    monkeypatch.setattr(settings, "optimizer_name", lambda _run: "paged_adamw_32bit")
    after = run_fake(_SMALL, _PLAN, 2)
    assert after.phases["Optimizer"] - before.phases["Optimizer"] == pytest.approx(6 * _ADAPTER, rel=0.05)
    assert after.peak_bytes > before.peak_bytes


def test_larger_chunks_of_the_loss_raise_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {**_SMALL, "vocab_size": 131072}
    before = run_fake(wide, _PLAN, 2)
    monkeypatch.setattr(head, "_LOGITS_AT_ONCE", 1 << 27)
    after = run_fake(wide, _PLAN, 2)
    # bf16 and float32 logits for (1023 - 256) additional positions.
    assert after.phases["Loss"] - before.phases["Loss"] == pytest.approx((1023 - 256) * 131072 * 6, rel=0.02)


def test_another_attention_changes_the_peak(before: FakePeaks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention scores of every pair of positions take at least float32."""
    monkeypatch.setattr(fake_model, "attention_implementation", lambda _config: "eager")
    after = run_fake(_SMALL, _PLAN, 2)
    assert after.phases["Recompute"] - before.phases["Recompute"] > 8 * 1024 * 1024 * 6


def test_disabled_checkpointing_raises_the_peak(before: FakePeaks) -> None:
    """The second layer's activations are kept as well: at least the inputs of its matrix products."""
    kept = run_fake(_SMALL, TrainingPlan(1024, gradient_checkpointing=False), 2)
    assert kept.peak_bytes - before.peak_bytes > 2 * 1024 * (4 * 512 + 3 * 1024)


def test_types_that_stay_in_float32_raise_the_peak(
    before: FakePeaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peft's preparation for k-bit training casts all unquantized tensors this way."""
    own = quantized.cast_model
    monkeypatch.setattr(fake_run, "cast_model", lambda model, _dtype: own(model, torch.float32))
    after = run_fake(_SMALL, _PLAN, 2)
    assert after.phases["Load"] - before.phases["Load"] >= 2 * 8192 * 512 * 2
    assert after.phases["Recompute"] > before.phases["Recompute"] + 4 * 8192 * 512


def test_a_batch_in_several_passes_keeps_its_gradients_through_the_next_forward_pass(
    before: FakePeaks,
) -> None:
    several = run_fake(_SMALL, TrainingPlan(1024, gradient_accumulation=8), 2)
    assert several.phases["Loss"] - before.phases["Loss"] == pytest.approx(4 * _ADAPTER, rel=0.02)


def test_a_run_is_repeatable_to_the_byte(before: FakePeaks) -> None:
    assert run_fake(_SMALL, _PLAN, 2) == before
