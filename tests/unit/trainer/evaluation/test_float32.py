from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.evaluation.float32 import computes_in_float32, in_float32
from finetune_trainer.model.load import cast_model, load_quantized, quantized_modules
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support import workspaces

if TYPE_CHECKING:
    pass

IDS = torch.tensor([[5, 9, 200, 31]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("float32")
    workspaces.write_base(root / "base", "llama")
    workspaces.prepare(root / "workspace", root / "base")
    return load_quantized(WorkspaceLayout(root / "workspace").quantized_model, "cpu")


@torch.no_grad()
def test_the_numbers_in_between_are_those_of_float32_and_nothing_stays_changed(model: Any) -> None:
    exact = model(IDS).logits
    assert computes_in_float32(model)
    cast_model(model, torch.bfloat16)
    before = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in model.named_parameters()}
    coarse = model(IDS).logits
    assert not computes_in_float32(model)
    with in_float32(model):
        assert computes_in_float32(model)
        # The unquantized weights are on the grid of bf16 already.
        assert torch.allclose(model(IDS).logits, exact, atol=1e-5)
    assert {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in model.named_parameters()} == before
    for module in quantized_modules(model).values():
        assert (module.compute_dtype, module.weight.quant_state.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(model(IDS).logits, coarse)
    assert not torch.allclose(coarse.float(), exact, atol=1e-5)


def test_an_error_in_between_leaves_the_model_as_it_was(model: Any) -> None:
    cast_model(model, torch.bfloat16)
    with pytest.raises(torch.OutOfMemoryError), in_float32(model):
        raise torch.OutOfMemoryError
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16, torch.uint8}
