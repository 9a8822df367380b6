from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.layout import BaseLayout
from finetune_trainer.model.weight_places import Rows
from finetune_trainer.stages.merge.update import LowRankUpdate, read_updates
from safetensors.torch import save_file

A, B = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [-1.0]])
UPDATE = LowRankUpdate(A.numpy(), B.numpy(), 2.0)


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 1, "lora_alpha": 8, **config}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def named(a: torch.Tensor, b: torch.Tensor, module: str = "x") -> dict[str, torch.Tensor]:
    prefix = f"base_model.model.{module}"
    return {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}


def base(transposed: Collection[str] = (), **places: tuple[str, int, int]) -> BaseLayout:
    held = {module: Rows(*place) for module, place in places.items()}
    return BaseLayout((), frozenset(), frozenset(transposed), held)


def with_magnitude(rows: int) -> dict[str, torch.Tensor]:
    return {**named(A, B), "base_model.model.x.lora_magnitude_vector": torch.ones(rows)}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"x": 12}}, 3.0),
        ({"r": 16, "rank_pattern": {"other": 2, "x": 4}}, 2.0),
        ({"r": 16, "rank_pattern": {"y|x": 4}, "alpha_pattern": {"a.x": 1}}, 2.0),
    ],
)
def test_the_scale_follows_variant_and_patterns(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    a, b = A.bfloat16().repeat(4, 1), B.bfloat16().repeat(1, 4)
    (update,) = read_updates(write(tmp_path, named(a, b), **{"r": 4, **config})).values()
    assert isinstance(update, LowRankUpdate)
    assert update.scale == scale
    assert update.a.dtype == np.float32
    assert update.a.tolist() == a.float().tolist()


def test_each_row_of_a_weight_gets_its_part_of_the_update() -> None:
    weight = np.zeros((2, 3), np.float32)
    out = np.empty((2, 3), np.float32)
    for first in (0, 1):
        UPDATE.apply(weight[first : first + 1], first, out[first : first + 1])
    assert out.tolist() == [[2.0, 4.0, 6.0], [-2.0, -4.0, -6.0]]


def test_a_magnitude_sets_the_norm_of_each_row() -> None:
    out = np.empty((2, 3), np.float32)
    update = LowRankUpdate(A.numpy(), B.numpy(), 0.5, np.array([3.0, 0.25], np.float32))
    update.apply(np.ones((2, 3), np.float32), 0, out)
    assert np.linalg.norm(out, axis=1).tolist() == pytest.approx([3.0, 0.25])


def test_the_norm_uses_the_whole_matrix() -> None:
    assert UPDATE.squared_norm() == pytest.approx(float((2 * B @ A).square().sum()))


def test_saved_modules_replace_tensors_of_the_base(tmp_path: Path) -> None:
    saved = {"base_model.model.model.norm.weight": torch.ones(3)}
    updates = read_updates(write(tmp_path, {**named(A, B), **saved}, modules_to_save=["norm"]))
    assert list(updates) == ["x"]
    assert updates.shape("x") == (2, 3)
    assert updates.read(updates.replaced["model.norm.weight"]).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("tensors", "config", "reason", "said"),
    [
        (named(A, torch.zeros(2, 1)), {}, Reason.ADAPTER_UNTRAINED, "must not be zero"),
        (named(A, B * math.nan), {}, Reason.ADAPTER_UNTRAINED, "lora_B"),
        (named(A * math.inf, B), {}, Reason.ADAPTER_UNTRAINED, "lora_A"),
        (
            {**named(A, B), "base_model.model.lm_head.weight": A.clone()},
            {},
            Reason.INTERNAL_ERROR,
            "only LoRA matrices, found tensor base_model.model.lm_head",
        ),
        (
            {**named(A, B), "base_model.model.x.lora_embedding_A": A.clone()},
            {},
            Reason.INTERNAL_ERROR,
            "lora_embedding_A",
        ),
        ({"base_model.model.x.lora_A.weight": A}, {}, None, "both matrices of x, found only A"),
        (named(A, torch.ones(2, 3)), {}, None, r"matrices A \(rank, in\) and B"),
        (named(A, B), {"r": 2}, None, "the rank 2 that its config gives to x, found 1"),
        (named(A, B), {"use_dora": True}, None, "if and only if"),
        (with_magnitude(2), {}, None, "if and only if"),
        (with_magnitude(3), {"use_dora": True}, None, "hold 2 magnitudes of x, found 3"),
        (named(A.to(torch.int32), B), {}, None, "type I32"),
        (named(A, B), {"fan_in_fan_out": True}, None, "fan_in_fan_out"),
        (named(A, B), {"bias": "all"}, None, "bias: all"),
        (named(A, B), {"init_lora_weights": "pissa_niter_4"}, None, "pissa"),
        (named(A, B), {"peft_type": "LOHA"}, None, "LOHA"),
    ],
)
def test_an_adapter_that_cannot_be_merged_has_a_cause(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], reason: Reason | None, said: str
) -> None:
    with pytest.raises(StageError, match=said) as caught:
        read_updates(write(tmp_path, tensors, **config))
    assert caught.value.reason is (reason or Reason.ARTIFACT_VERIFICATION_FAILED)


def test_a_matrix_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    twice = {**named(A, B), "x.lora_A.weight": A.clone()}
    with pytest.raises(StageError, match="each matrix once"):
        read_updates(write(tmp_path, twice))


def test_the_digest_is_over_matrices_and_settings(tmp_path: Path) -> None:
    digests = {
        read_updates(write(tmp_path, tensors, lora_alpha=alpha)).digest()
        for tensors in (named(A, B), named(A, -B))
        for alpha in (8, 16)
    }
    assert len(digests) == 4


def test_an_update_of_a_weight_with_a_row_for_each_input_is_transposed(tmp_path: Path) -> None:
    updates = read_updates(write(tmp_path, named(A, B)), base(transposed=["x"]))
    assert updates.shape("x") == (3, 2)
    weight = np.zeros((3, 2), np.float32)
    out = np.empty_like(weight)
    for first in range(3):
        updates["x"].apply(weight[first : first + 1], first, out[first : first + 1])
    assert out.tolist() == (8 * B @ A).T.tolist()
    assert updates["x"].squared_norm() == pytest.approx(float((8 * B @ A).square().sum()))


@pytest.mark.parametrize("transposed", [[], ["x"]])
@pytest.mark.parametrize("step", [1, 2, 5, 12])
def test_no_update_reaches_into_the_rows_of_the_next_expert(
    tmp_path: Path, transposed: list[str], step: int
) -> None:
    """Rows are read in blocks that end anywhere."""
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(2, 1, 6, generator=generator), torch.randn(2, 6, 1, generator=generator)
    updates = read_updates(write(tmp_path, named(a, b)), base(transposed))
    assert updates.shape("x") == (2, 6, 6)
    weight = np.zeros((12, 6), np.float32)
    out = np.empty_like(weight)
    for first in range(0, 12, step):
        updates["x"].apply(weight[first : first + step], first, out[first : first + step])
    known = 8 * b @ a
    np.testing.assert_allclose(
        out, (known.transpose(1, 2) if transposed else known).reshape(12, 6), rtol=1e-6
    )
    assert updates["x"].squared_norm() == pytest.approx(float(known.square().sum()), rel=1e-5)


def test_magnitudes_of_a_weight_with_a_row_for_each_input_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, with_magnitude(2), use_dora=True)
    plain = read_updates(folder)["x"]
    assert isinstance(plain, LowRankUpdate)
    assert plain.magnitude is not None
    with pytest.raises(StageError, match="no magnitudes"):
        read_updates(folder, base(transposed=["x"]))


def test_an_update_has_the_name_that_its_weight_has_in_the_files(tmp_path: Path) -> None:
    updates = read_updates(write(tmp_path, named(A, B)), base(x=("h.0.fc.weight", 0, 2)))
    assert list(updates) == ["h.0.fc"]
    assert "x" not in updates
    assert updates.shape("h.0.fc") == (2, 3)
    assert isinstance(updates["h.0.fc"], LowRankUpdate)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_layers_in_one_tensor_are_updated_in_their_own_rows(tmp_path: Path, step: int) -> None:
    """Rows 2 and 3 belong to a layer without an adapter. Rows are read in blocks that end anywhere."""
    tensors = {**named(A, B, "q"), **named(A.clone(), torch.tensor([[2.0], [3.0], [5.0]]), "v")}
    places = base(q=("qkv.weight", 0, 2), k=("qkv.weight", 2, 4), v=("qkv.weight", 4, 7))
    updates = read_updates(write(tmp_path, tensors), places)
    assert list(updates) == ["qkv"]
    assert updates.shape("qkv") == (7, 3)
    weight = np.full((7, 3), 0.5, np.float32)
    out = np.empty_like(weight)
    for first in range(0, 7, step):
        updates["qkv"].apply(weight[first : first + step], first, out[first : first + step])
    rows = torch.tensor([1.0, -1.0, 0.0, 0.0, 2.0, 3.0, 5.0])[:, None]
    assert out.tolist() == (0.5 + 8 * rows @ A).tolist()
    assert updates["qkv"].squared_norm() == pytest.approx(float((8 * rows @ A).square().sum()))


def test_an_update_with_other_outputs_than_its_rows_is_refused(tmp_path: Path) -> None:
    places = base(x=("qkv.weight", 0, 4), y=("qkv.weight", 4, 6))
    with pytest.raises(StageError, match="4 outputs of x") as caught:
        read_updates(write(tmp_path, named(A, B)), places)
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED
