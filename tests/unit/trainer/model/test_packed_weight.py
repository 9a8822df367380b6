"""Products with packed matrices, and their adapter, against the same matrices unpacked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from finetune_trainer.contract.run_spec import Lora
from finetune_trainer.model.packed_parameters import PackedParameter, PackedPart
from finetune_trainer.model.packed_weight import Nf4Rows, PackedWeight, packed_adapters, packed_weights
from torch.nn import functional

EXPERTS, ROWS, COLUMNS = 3, 32, 64


def packed(*, transposed: bool = False, halves: bool = False) -> tuple[Any, torch.Tensor]:
    """Return a packed weight and its matrices (experts, rows, columns), from one tensor or from two for each expert."""
    torch.manual_seed(2)
    values = torch.randn(EXPERTS, ROWS, COLUMNS, dtype=torch.bfloat16)
    if halves:
        cuts = ((0, ROWS // 2), (ROWS // 2, ROWS))
        parts = tuple(
            PackedPart(f"e.{e}.{name}.weight", e, *cut)
            for e in range(EXPERTS)
            for name, cut in zip("gu", cuts, strict=True)
        )
        rows = [[_rows(values[e, first:last]) for first, last in cuts] for e in range(EXPERTS)]
    else:
        parts = (PackedPart("e.w", None, 0, ROWS),)
        whole = _rows(values.reshape(-1, COLUMNS))
        size, blocks = ROWS * COLUMNS, ROWS * COLUMNS // 64
        rows = [
            [
                Nf4Rows(
                    whole.packed[e * size // 2 : (e + 1) * size // 2],
                    whole.scales[e * blocks : (e + 1) * blocks],
                    whole.code,
                    whole.nested,
                    whole.nested_code,
                    whole.offset,
                    (ROWS, COLUMNS),
                    e * blocks,
                )
            ]
            for e in range(EXPERTS)
        ]
    weight = PackedWeight(PackedParameter("e.w", EXPERTS, ROWS, COLUMNS, transposed, parts), rows)
    known = torch.stack([weight.values(e, torch.float32) for e in range(EXPERTS)])
    return weight, known


def _rows(values: torch.Tensor) -> Nf4Rows:
    data, state = quantize_4bit(values.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
    state.dtype = torch.float32
    nested = state.state2
    found = Nf4Rows(
        data.flatten(),
        state.absmax,
        state.code,
        nested.absmax,
        nested.code,
        state.offset,
        (values.shape[0], values.shape[1]),
    )
    torch.testing.assert_close(found.values(torch.float32), dequantize_4bit(data, state), rtol=0, atol=0)
    return found


def lora(**changes: Any) -> Lora:
    return Lora.model_validate(
        {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear", "variant": "Standard", **changes}
    )


def learned(weight: PackedWeight) -> None:
    with torch.no_grad():
        weight.lora_B["default"].normal_(generator=torch.Generator().manual_seed(5))


def test_a_matrix_of_a_stack_is_that_of_its_expert_bit_for_bit() -> None:
    one, values = packed()
    two, other = packed(halves=True)
    assert values.shape == other.shape == one.shape == two.shape
    # Their absolute values are quantized together or apart, so they agree to that step alone.
    torch.testing.assert_close(values, other, rtol=0.05, atol=0.02)
    assert not torch.equal(values[0], values[1])


@pytest.mark.parametrize("halves", [False, True])
def test_products_and_gradients_are_those_of_the_unpacked_matrix(halves: bool) -> None:  # noqa: FBT001 -- a parameter
    weight, values = packed(halves=halves)
    inputs = torch.randn(5, COLUMNS, requires_grad=True)
    found = functional.linear(inputs, weight[torch.tensor(1)])
    known = functional.linear(inputs, values[1])
    assert torch.equal(found, known)
    gradient = torch.randn_like(known)
    (mine,) = torch.autograd.grad(found, inputs, gradient)
    (theirs,) = torch.autograd.grad(known, inputs, gradient)
    torch.testing.assert_close(mine, theirs)


def test_the_operations_of_experts_from_the_other_side_are_understood() -> None:
    weight, values = packed(transposed=True)
    rows = torch.randn(EXPERTS, 4, ROWS)
    torch.testing.assert_close(torch.bmm(rows, weight), torch.bmm(rows, values))
    torch.testing.assert_close(rows[0] @ weight[0], rows[0] @ values[0])
    torch.testing.assert_close(rows[0] @ weight[0].T.T, rows[0] @ values[0])
    with pytest.raises(TypeError):
        torch.relu(weight[0])


def test_no_unpacked_matrix_is_kept_for_the_backward_pass() -> None:
    weight, _ = packed()
    kept: list[int] = []

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept.append(saved.numel())
        return saved

    inputs = torch.randn(5, COLUMNS, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        functional.linear(inputs, weight[0])
    assert sum(kept) < ROWS * COLUMNS


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("variant", ["Standard", "RankStabilized"])
def test_an_adapter_adds_the_update_of_its_factors(transposed: bool, variant: str) -> None:  # noqa: FBT001 -- a parameter
    weight, values = packed(transposed=transposed, halves=not transposed)
    inputs = torch.randn(5, ROWS if transposed else COLUMNS)

    def multiply() -> Any:
        return inputs @ weight[2] if transposed else functional.linear(inputs, weight[2])

    plain = multiply()
    weight.add_adapter(lora(variant=variant))
    assert torch.equal(multiply(), plain), "a new adapter changes nothing"
    learned(weight)
    scale = 8 / (math.sqrt(4) if variant == "RankStabilized" else 4)
    factors = weight.factors()
    if transposed:
        a, b, _ = factors["e.w"]
        known = inputs @ (values[2] + scale * (b[2] @ a[2]).T)
    else:
        whole = torch.cat([factors[f"e.2.{part}"][1] @ factors[f"e.2.{part}"][0] for part in "gu"])
        known = functional.linear(inputs, values[2] + scale * whole)
    torch.testing.assert_close(multiply(), known, rtol=1e-4, atol=1e-4)
    weight.enable_adapters(False)
    assert torch.equal(multiply(), plain)


def test_magnitudes_rescale_each_output_of_an_expert() -> None:
    weight, values = packed(halves=True)
    inputs = torch.randn(5, COLUMNS)
    plain = functional.linear(inputs, values[1])
    weight.add_adapter(lora(variant="DoRA"))
    torch.testing.assert_close(functional.linear(inputs, weight[1]), plain, rtol=1e-4, atol=1e-4)
    learned(weight)
    known = []
    for part, rows in zip("gu", values[1].chunk(2), strict=True):
        a, b, magnitude = weight.factors()[f"e.1.{part}"]
        assert magnitude is not None
        updated = rows + 2 * (b @ a)
        known.append(magnitude[:, None] * updated / updated.norm(dim=1, keepdim=True))
    found = functional.linear(inputs, weight[1])
    torch.testing.assert_close(found, functional.linear(inputs, torch.cat(known)), rtol=1e-4, atol=1e-4)


def test_the_adapter_of_a_model_has_a_name_for_a_checkpoint() -> None:
    weight, _ = packed()
    weight.add_adapter(lora())
    model = torch.nn.ModuleDict({"experts": weight})
    assert set(packed_adapters(model)) == {"experts.lora_A", "experts.lora_B"}
    assert packed_weights(model) == {"experts": weight}
    assert weight.nbytes == EXPERTS * ROWS * COLUMNS // 2
