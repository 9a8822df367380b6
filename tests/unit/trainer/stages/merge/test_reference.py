from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from finetune_trainer.model.load import load_quantized
from finetune_trainer.stages.merge import tensor_files
from safetensors.torch import load_file

from tests.support import workspaces
from tests.support.merging import Tuned, tune

if TYPE_CHECKING:
    from finetune_trainer.stages.merge.reference import ExactReference

NAME = "model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    root = tmp_path_factory.mktemp("reference")
    workspaces.write_base(root / "base", "llama", shard="60KB")
    workspaces.prepare(root / "prepared", root / "base")
    lora = {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AttentionOnly", "variant": "Standard"}
    return tune(
        root / "prepared", root / "workspace", root / "base", maximumSteps=1, learningRate=0.001, lora=lora
    )


def weights(reference: ExactReference, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    base, exact, trained = [], [], []
    for rows in reference.blocks(name):
        # They are valid until the next ones.
        base.append(rows.base.clone())
        exact.append(rows.exact.clone())
        trained.append(rows.trained.clone() if rows.trained is not None else torch.empty(0))
    assert len(base) > 2
    return torch.cat(base), torch.cat(exact), torch.cat(trained) if trained[0].numel() else None


def weight_of_the_training(tuned: Tuned, name: str) -> torch.Tensor:
    """Return what the training multiplies with, in float32: it is seen by multiplying with the identity."""
    module = load_quantized(tuned.workspace.quantized_model, "cpu").get_submodule(name)
    with torch.no_grad():
        found: torch.Tensor = module(torch.eye(64)).T
    return found


def update_of(tuned: Tuned) -> torch.Tensor:
    update = tuned.updates[NAME]
    return update.scale * torch.from_numpy(update.b) @ torch.from_numpy(update.a)


def test_the_base_is_what_the_training_computes_with_and_exact_has_the_update(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "ELEMENTS_AT_ONCE", 64 * 9)
    with tuned.reference() as reference:
        base, exact, trained = weights(reference, NAME)
        plain, same, _ = weights(reference, "model.layers.0.mlp.up_proj")
    assert torch.equal(base, weight_of_the_training(tuned, NAME))
    assert torch.allclose(exact, base + update_of(tuned), atol=1e-7)
    assert not torch.equal(exact, base)
    assert torch.equal(plain, same)
    assert trained is None


def test_on_the_original_weights_base_and_exact_are_those_and_the_trained_ones_stay(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "ELEMENTS_AT_ONCE", 64 * 9)
    with tuned.reference(onto_original=True) as reference:
        base, exact, trained = weights(reference, NAME)
    original = {
        name: tensor
        for path in tuned.original.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert torch.equal(base, original[f"{NAME}.weight"].float())
    assert torch.allclose(exact, base + update_of(tuned), atol=1e-7)
    assert trained is not None
    assert torch.allclose(trained, weight_of_the_training(tuned, NAME) + update_of(tuned), atol=1e-7)
    assert not torch.allclose(trained, exact, atol=1e-3)


def test_a_tensor_that_is_not_merged_has_the_checkpoints_values(tuned: Tuned) -> None:
    with tuned.reference() as reference:
        found = torch.cat(list(reference.unchanged("model.embed_tokens.weight")))
        assert reference.modules == tuned.layout.quantized
    embedding = load_quantized(tuned.workspace.quantized_model, "cpu").get_input_embeddings()
    assert torch.equal(found, embedding.weight)


def test_the_second_rounding_is_another_honest_one(tuned: Tuned) -> None:
    """Onto the original weights the first one is stochastic, but only where there is an update."""
    exact = torch.randn(200, 50, generator=torch.Generator().manual_seed(3))
    nearest = exact.bfloat16().float()
    name = f"{NAME}.weight"
    with tuned.reference() as reference:
        assert torch.equal(reference.rounded(name, 0, exact, "BF16"), nearest)
        second = reference.second(name, 0, exact, "BF16")
        assert torch.equal(second, reference.second(name, 0, exact, "BF16"))
        assert torch.equal(second[40:], reference.second(name, 40, exact[40:], "BF16"))
        assert torch.equal(reference.rounded(name, 0, exact, "F16"), exact.half().float())
        assert torch.equal(reference.second(name, 0, exact, "F32"), exact)
    with tuned.reference(onto_original=True) as reference:
        first = reference.rounded(name, 0, exact, "BF16")
        assert torch.equal(reference.rounded("model.layers.0.mlp.up_proj.weight", 0, exact, "BF16"), nearest)
    for found, other in ((second, nearest), (first, nearest), (second, first)):
        assert 0.1 < float((found != other).float().mean()) < 0.6
