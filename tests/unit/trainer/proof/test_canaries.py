"""The canaries of a model: healthy architectures pass, and injected faults are found with the name of the layer."""

from __future__ import annotations

import json
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.model import packed_attention, packing_canary
from finetune_trainer.model.packed_weight import PackedWeight
from finetune_trainer.proof import canaries, small_run
from finetune_trainer.proof.canaries import LORA, checkpointing_problem, findings, try_model
from finetune_trainer.proof.small_run import SmallRun
from finetune_trainer.stages.merge.update import AdapterUpdates
from finetune_trainer.stages.merge.weights import merge_weights
from finetune_trainer.stages.prepare.model_proof import Findings
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run_of(tmp_path: Path) -> Any:
    """Return a function that gives a run of a small model whose adapter is new."""

    def make(kind: str, **members: Any) -> SmallRun:
        run = SmallRun(tmp_path, LORA)
        run.build(AutoConfig.for_model(kind, **members))
        run.prepare()
        run.adapt()
        return run

    return make


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_a_healthy_architecture_passes_every_canary(kind: str) -> None:
    found = try_model(AutoConfig.for_model(kind))
    assert (found.packing, found.merge, found.checkpointing) == (None, None, None)


def test_a_trial_has_the_vocabulary_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def record(run: SmallRun) -> Findings:
        seen.append(run.adapted.get_output_embeddings().weight.shape[0])
        assert int(run.probe().max()) < seen[0]
        return Findings()

    monkeypatch.setattr(canaries, "findings", record)
    assert try_model(AutoConfig.for_model("llama", vocab_size=4099)) == Findings()
    assert seen == [4099]


def test_packing_without_boundaries_is_found(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vars(packed_attention.PackedRows)["slices"].fget

    def one_row(self: Any) -> list[slice]:
        return (
            [slice(0, sum(self.lengths))]
            if torch.is_grad_enabled() is False and _inside[0]
            else list(whole(self))
        )

    _inside = [False]
    original = packed_attention._row_by_row

    def careless(parts: Any, rows: Any, scores: Any) -> torch.Tensor:
        _inside[0] = True
        try:
            return original(parts, rows, scores)
        finally:
            _inside[0] = False

    monkeypatch.setattr(packed_attention.PackedRows, "slices", property(one_row))
    for name in packed_attention.ATTENTIONS:
        broken = partial(packed_attention._packed, careless)
        monkeypatch.setitem(packed_attention.ATTENTIONS, name, broken)
    found = findings(run_of("llama"))
    assert found.packing is not None
    assert "see each other" in found.packing
    assert "first in model.layers.0.self_attn" in found.packing


def test_wrong_position_ids_of_packed_rows_are_found(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = packed_attention.packed_states

    def running(model: Any, ids: torch.Tensor, positions: torch.Tensor, rows: Any) -> torch.Tensor:
        return original(model, ids, torch.cumsum(torch.ones_like(positions), dim=1) ** 2, rows)

    monkeypatch.setattr(packing_canary, "packed_states", running)
    found = findings(run_of("llama"))
    assert found.packing is not None
    assert "computed as by themselves" in found.packing
    assert "first in model.rotary_emb" in found.packing


# The first module through which a row sees the row before it.
CARRYING = {
    "mamba2": "backbone.layers.0.mixer",
    "bloom": "transformer.h.0.self_attention",
}


@pytest.mark.parametrize("kind", CARRYING, ids=["a recurrent state", "biases by distance"])
def test_what_is_carried_into_the_next_row_is_found_with_its_layer(kind: str, run_of: Any) -> None:
    found = packing_canary.packing_obstacle(run_of(kind).adapted, 21)
    assert found is not None
    assert f"first in {CARRYING[kind]}" in found


def test_an_expert_that_is_merged_into_its_neighbor_is_found_with_its_layer(
    run_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AdapterUpdates.__getitem__

    def neighbor(self: AdapterUpdates, module: str) -> Any:
        return original(self, module.replace("layers.1.mlp.experts.0.", "layers.1.mlp.experts.1."))

    monkeypatch.setattr(AdapterUpdates, "__getitem__", neighbor)
    found = findings(run_of("qwen3_moe"))
    assert found.merge is not None
    assert "first in model.layers.1.mlp.experts" in found.merge


def test_a_tied_head_that_is_untied_is_found(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = merge_weights

    def untied(inputs: Any, layout: Any, target: Any, progress: Any) -> Any:
        found = original(inputs, layout, target, progress)
        _add_head(target)
        return found

    monkeypatch.setattr(small_run, "merge_weights", untied)
    monkeypatch.setattr(small_run, "check_weights", lambda *_: None)
    found = findings(run_of("qwen2", tie_word_embeddings=True))
    assert found.merge is not None
    assert "head" in found.merge


def _add_head(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"].flip(0).clone())
    save_file(tensors, path, metadata={"format": "pt"})
    base = folder.parent / "workspace" / "base" / "config.json"
    document = json.loads(base.read_text())
    base.write_text(json.dumps({**document, "tie_word_embeddings": False}))


def test_a_layer_that_changes_when_it_is_computed_again_is_found(
    run_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LlamaDecoderLayer.forward
    calls = [0]

    def restless(self: Any, states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return original(self, states * (1 + 0.01 * calls[0]), *arguments, **named)

    run = run_of("llama")
    monkeypatch.setattr(LlamaDecoderLayer, "forward", restless)
    found = checkpointing_problem(run)
    assert found is not None
    assert "model.layers." in found


def test_experts_are_computed_one_by_one(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two matrices are unpacked at one time, forward and backward."""
    run = run_of("qwen3_moe")
    alive = [0]
    most = [0]
    original = PackedWeight.values

    def ended() -> None:
        alive[0] -= 1

    def counting(self: PackedWeight, expert: int, dtype: torch.dtype) -> torch.Tensor:
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        found = original(self, expert, dtype)
        weakref.finalize(found, ended)
        return found

    assert isinstance(
        run.adapted.get_submodule("base_model.model.model.layers.0.mlp.experts"), Qwen3MoeExperts
    )
    monkeypatch.setattr(PackedWeight, "values", counting)
    run.gradients(run.step(packed=True))
    assert 1 <= most[0] <= 2


def test_a_model_that_runs_but_cannot_be_trained_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any, **_named: Any) -> Any:
        raise RuntimeError("no layer takes an adapter")

    monkeypatch.setattr(small_run, "add_adapter", broken)
    found = try_model(AutoConfig.for_model("llama"))
    assert found.training is not None
    assert "found RuntimeError" in found.training
    assert "no layer takes an adapter" in found.training


def test_a_small_model_that_cannot_run_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any, **_named: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(LlamaDecoderLayer, "forward", broken)
    with pytest.raises(RuntimeError, match="no such kernel"):
        try_model(AutoConfig.for_model("llama"))
