from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.layout import BaseLayout, WeightFile
from finetune_trainer.model.safetensors_file import PlannedTensor, TensorEntry
from finetune_trainer.quantization.rounding import Noise, round_weights
from finetune_trainer.stages.merge.exact import QuantizedBase, StoredBase, WeightFiles
from finetune_trainer.stages.merge.journal import FileRecord
from finetune_trainer.stages.merge.update import LowRankUpdate
from finetune_trainer.stages.merge.weights import (
    MergeInputs,
    check_weights,
    merge_weights,
    require_matching,
)
from safetensors.torch import load_file, save_file

from tests.support.exact_models import dequantized, projection, write_checkpoint

NAME = "model.safetensors"
SHAPES = {"first": (40, 30), "second": (16, 64)}
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def update(size: float = 0.01, rows: int = 40, columns: int = 30) -> LowRankUpdate:
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(3, columns)), generator.normal(size=(rows, 3)) * size
    return LowRankUpdate(a.astype(np.float32), b.astype(np.float32), 0.5)


def base() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(shape) * 0.1 for name, shape in SHAPES.items()}


def write(
    source: Path, layout: BaseLayout, target: Path, updates: dict[str, LowRankUpdate], **options: Any
) -> dict[str, FileRecord]:
    original = options.pop("original", False)
    target.mkdir(exist_ok=True)
    with WeightFiles(source, [file.name for file in layout.files]) as files:
        weights = StoredBase(files) if original else QuantizedBase(files)
        inputs = MergeInputs(files, weights, updates, requantized=not original, **options)
        return merge_weights(inputs, layout, target, lambda _done, _total: None, threads=2)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_an_updated_weight_is_the_sum_in_float32_rounded_once(tmp_path: Path, dtype: str) -> None:
    layout = write_checkpoint(tmp_path / "model", base(), dtype=dtype)
    source = load_file(tmp_path / "model" / NAME)
    change = update(1e-4)
    write(tmp_path / "model", layout, tmp_path / "out", {"first": change})
    check_weights(tmp_path / "out", layout)
    found = load_file(tmp_path / "out" / NAME)
    before = dequantized(source, "first.weight", torch.float32)
    exact = torch.empty_like(before)
    change.apply(before.numpy(), 0, exact.numpy())
    assert torch.equal(found["first.weight"], exact.to(TYPES[dtype]))
    assert torch.equal(
        found["second.weight"], dequantized(source, "second.weight", torch.float32).to(TYPES[dtype])
    )
    assert torch.equal(found["first.bias"], source["first.bias"].to(TYPES[dtype]))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_original_weights_round_by_seed_name_and_position(tmp_path: Path, dtype: str) -> None:
    """Weights without an update keep their bytes."""
    (tmp_path / "original").mkdir()
    tensors = {f"{name}.weight": weight.to(TYPES[dtype]) for name, weight in base().items()}
    save_file(tensors, tmp_path / "original" / NAME)
    planned = tuple(PlannedTensor(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    layout = BaseLayout((WeightFile(NAME, planned),), frozenset(SHAPES))
    change = update(1e-4)
    written = write(tmp_path / "original", layout, tmp_path / "a", {"first": change}, original=True, seed=5)
    found = load_file(tmp_path / "a" / NAME)
    before = tensors["first.weight"].float()
    exact = torch.empty_like(before)
    change.apply(before.numpy(), 0, exact.numpy())
    out = torch.empty_like(tensors["first.weight"])
    raw: Any = out.view(torch.int32 if dtype == "F32" else torch.uint16).numpy().reshape(-1)
    raw = raw.view(np.float32) if dtype == "F32" else raw
    round_weights(exact.numpy().ravel(), dtype, raw, Noise.of(5, "first.weight"))
    assert torch.equal(found["first.weight"], out)
    assert torch.equal(found["second.weight"], tensors["second.weight"])
    again = write(tmp_path / "original", layout, tmp_path / "b", {"first": change}, original=True, seed=5)
    assert again == written
    other = write(tmp_path / "original", layout, tmp_path / "c", {"first": change}, original=True, seed=6)
    assert (other == written) is (dtype == "F32"), "float32 needs no rounding"


def test_a_small_update_survives_in_the_mean_only_if_it_is_rounded_stochastically(tmp_path: Path) -> None:
    """Weights in bf16 are on the grid: to nearest, an update below half a step is lost."""
    (tmp_path / "original").mkdir()
    weight = (torch.randn(512, 64) * 0.1).bfloat16()
    save_file({"first.weight": weight}, tmp_path / "original" / NAME)
    layout = BaseLayout(
        (WeightFile(NAME, (PlannedTensor("first.weight", "BF16", (512, 64)),)),), frozenset(["first"])
    )
    change = update(1e-4, 512, 64)
    exact = torch.empty(512, 64)
    change.apply(weight.float().numpy(), 0, exact.numpy())

    def surviving(folder: Path, **options: Any) -> float:
        write(tmp_path / "original", layout, folder, {"first": change}, original=True, **options)
        return projection(load_file(folder / NAME)["first.weight"], weight, exact)

    assert surviving(tmp_path / "nearest") < 0.6
    assert surviving(tmp_path / "stochastic", seed=1) == pytest.approx(1.0, abs=0.05)


def test_replaced_tensors_come_from_the_adapter(tmp_path: Path) -> None:
    layout = write_checkpoint(tmp_path / "model", base())
    saved = torch.full((3, 5), 0.5)
    save_file({"base_model.model.norm.weight": saved}, tmp_path / "adapter.safetensors")
    with WeightFiles(tmp_path, ["adapter.safetensors"]) as files:
        replaced = {"norm.weight": files.find("base_model.model.norm.weight")}
        write(tmp_path / "model", layout, tmp_path / "out", {}, replaced=replaced)
    assert torch.equal(load_file(tmp_path / "out" / NAME)["norm.weight"], saved.bfloat16())


def test_a_tensor_that_prepare_did_not_write_is_a_mismatch(tmp_path: Path) -> None:
    layout = write_checkpoint(tmp_path / "model", base())
    save_file({"first.bias": torch.ones(8).bfloat16()}, tmp_path / "model" / NAME)
    with pytest.raises(StageError, match="must hold tensor") as caught:
        write(tmp_path / "model", layout, tmp_path / "out", {})
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["first.bias", "norm.weight"])
def test_a_tensor_of_another_shape_or_type_is_a_mismatch(tmp_path: Path, name: str) -> None:
    layout = write_checkpoint(tmp_path / "model", base())
    tensors = load_file(tmp_path / "model" / NAME)
    changed = tensors[name].reshape(-1, 1) if name == "norm.weight" else tensors[name].to(torch.int16)
    save_file({**tensors, name: changed}, tmp_path / "model" / NAME)
    with pytest.raises(StageError, match=name) as caught:
        write(tmp_path / "model", layout, tmp_path / "out", {})
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH


def test_values_too_large_for_the_type_name_tensor_and_remedy(tmp_path: Path) -> None:
    layout = write_checkpoint(tmp_path / "model", {"first": torch.full((40, 30), 1e5)}, dtype="F16")
    with pytest.raises(StageError, match=r"in first\.weight; .*output\.dtype to BFloat16"):
        write(tmp_path / "model", layout, tmp_path / "out", {})


@pytest.mark.parametrize(
    ("shapes", "replaced", "reason", "said"),
    [
        ({"norm": (3, 5)}, {}, Reason.INTERNAL_ERROR, "found 1 that do not: norm"),
        ({}, {"other.weight": (2,)}, Reason.INTERNAL_ERROR, "found 1 that do not: other.weight"),
        ({"first": (30, 40)}, {}, Reason.ARTIFACT_VERIFICATION_FAILED, "first.weight has the shape"),
        ({}, {"norm.weight": (5, 3)}, Reason.ARTIFACT_VERIFICATION_FAILED, "norm.weight has the shape"),
    ],
)
def test_each_part_of_the_adapter_must_fit_a_weight(
    tmp_path: Path,
    shapes: dict[str, tuple[int, int]],
    replaced: dict[str, tuple[int, ...]],
    reason: Reason,
    said: str,
) -> None:
    layout = write_checkpoint(tmp_path, base())
    entries = {name: TensorEntry(name, "F32", shape, 0, 0) for name, shape in replaced.items()}
    with pytest.raises(StageError, match=said) as caught:
        require_matching(dict.fromkeys(shapes, update()), shapes, entries, layout)
    assert caught.value.reason is reason


def test_written_files_of_another_type_are_rejected(tmp_path: Path) -> None:
    layout = write_checkpoint(tmp_path / "model", base(), dtype="F16")
    write(tmp_path / "model", layout, tmp_path / "out", {})
    with pytest.raises(StageError) as caught:
        check_weights(tmp_path / "out", layout.stored_as("BFloat16"))
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED
