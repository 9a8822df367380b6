"""A parameter of many matrices stands as bytes of which a rank has a part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from finetune_trainer.model.packed_parameters import PackedParameter, PackedPart
from finetune_trainer.model.packed_weight import packed_weights
from finetune_trainer.model.sharding.load import load_shell
from finetune_trainer.model.sharding.packed import Piece, pieces_of

from tests.support.ranks import imagined_rank
from tests.support.workspaces import prepare_small

if TYPE_CHECKING:
    from pathlib import Path


def test_tensors_stand_in_the_order_of_their_experts_with_incomplete_blocks() -> None:
    parts = tuple(
        PackedPart(f"{expert}.{name}.weight", expert, first, first + 5)
        for name, first in (("up", 5), ("gate", 0))
        for expert in (1, 0)
    )
    found = pieces_of(PackedParameter("experts.gate_up_proj", 2, 10, 13, transposed=False, parts=parts))
    assert [piece.part.tensor for piece in found] == [
        "0.gate.weight", "0.up.weight", "1.gate.weight", "1.up.weight"
    ]  # fmt: skip
    # 65 weights.
    assert {(piece.bytes, piece.blocks) for piece in found} == {(33, 2)}


def test_a_tensor_of_all_experts_is_one_piece() -> None:
    part = PackedPart("experts.down_proj", None, 0, 8)
    parameter = PackedParameter("experts.down_proj", 4, 8, 16, transposed=True, parts=(part,))
    assert pieces_of(parameter) == (Piece(part, 256, 8),)


def test_a_matrix_is_read_only_while_its_layer_is_gathered(tmp_path: Path) -> None:
    """A slice of the part of a rank would wait for the other ranks. What is saved of an adapter needs no matrix."""
    shell = load_shell(prepare_small(tmp_path, "qwen3_moe").quantized_model, "cpu", dequantized=False)
    name, weight = next(iter(packed_weights(shell.model).items()))
    with imagined_rank(0, 2) as mesh:
        shell.fill(shell.model, mesh)
        assert weight.device == torch.device("cpu")
        with pytest.raises(RuntimeError, match=f"{name} must be gathered before its matrices are read"):
            weight.values(0, torch.float32)
