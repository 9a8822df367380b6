from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from finetune_trainer.stages.merge.reference import Rows
from finetune_trainer.stages.merge.tensor_files import TensorFiles
from finetune_trainer.stages.merge.weight_proof import ProvenWeights, TensorProof, total
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

BASE = torch.randn(30, 20, generator=torch.Generator().manual_seed(1))
UPDATE = 0.05 * torch.randn(30, 20, generator=torch.Generator().manual_seed(2))
NORM = torch.full((20,), 1.5)
TOWER = torch.tensor([1.0, torch.nan, torch.inf])


class Known:
    """A reference with one merged weight, one tensor of the base, and one that is kept."""

    modules = frozenset({"layer"})
    kept = frozenset({"tower.weight"})

    def __init__(self, *, onto_original: bool = False) -> None:
        self.onto_original = onto_original

    def blocks(self, module: str) -> Iterator[Rows]:
        assert module == "layer"
        yield Rows(BASE, BASE + UPDATE, BASE - 1 if self.onto_original else None)

    def rows(self, module: str, start: int, count: int) -> Iterator[Rows]:
        for rows in self.blocks(module):
            chosen = slice(start, start + count)
            yield Rows(
                rows.base[chosen], rows.exact[chosen], None if rows.trained is None else rows.trained[chosen]
            )

    def unchanged(self, name: str) -> Iterator[torch.Tensor]:
        assert name == "norm.weight"
        yield NORM[None]

    def raw(self, name: str) -> Iterator[NDArray[np.uint8]]:
        assert name == "tower.weight"
        yield TOWER.view(torch.uint8).numpy()

    def rounded(self, _name: str, _first: int, exact: torch.Tensor, dtype: str) -> torch.Tensor:
        assert dtype == "BF16"
        return exact.bfloat16().float()

    def second(self, _name: str, _first: int, exact: torch.Tensor, _dtype: str) -> torch.Tensor:
        return exact + 1


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    tensors = {"layer.weight": (BASE + UPDATE).bfloat16(), "norm.weight": NORM.bfloat16()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def change(artifact: Path, name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(artifact / "model.safetensors")
    tensors[name] = function(tensors[name].float()).to(tensors[name].dtype)
    save_file(tensors, artifact / "model.safetensors")


def prove(artifact: Path) -> dict[str, TensorProof]:
    with TensorFiles(artifact) as files:
        return {proof.name: proof for proof in ProvenWeights(files, Known()).finish()}


def test_the_variants_are_the_written_the_exact_and_the_second_rounding(artifact: Path) -> None:
    seen: list[tuple[int, int]] = []
    with TensorFiles(artifact) as files:
        weights = ProvenWeights(files, Known(), lambda done, in_all: seen.append((done, in_all)))
        ((first, variants),) = weights.blocks("layer.weight")
        ((_, alone),) = weights.blocks("norm.weight")
        assert len(alone) == 1
        proofs = weights.finish()
        assert files.bytes_read == {name: files.bytes(name) for name in files.names}
    assert first == 0
    assert len(variants) == weights.variants
    for found, wanted in zip(
        variants, ((BASE + UPDATE).bfloat16().float(), BASE + UPDATE, BASE + UPDATE + 1), strict=True
    ):
        assert torch.equal(found, wanted)
    assert [proof.name for proof in proofs] == ["layer.weight", "norm.weight"]
    assert seen[-1] == (1240, 1240)


def test_a_merge_onto_other_weights_has_the_base_and_the_trained_weights_too(artifact: Path) -> None:
    with TensorFiles(artifact) as files:
        weights = ProvenWeights(files, Known(onto_original=True))
        ((_, variants),) = weights.blocks("layer.weight")
    assert len(variants) == weights.variants == 5
    assert torch.equal(variants[3], BASE)
    assert torch.equal(variants[4], BASE - 1)


def test_sums_and_shares_follow_their_formulas(artifact: Path) -> None:
    proof = prove(artifact)["layer.weight"]
    realized = (BASE + UPDATE).bfloat16().double() - BASE.double()
    intended = (BASE + UPDATE).double() - BASE.double()
    assert (proof.elements, proof.foreign) == (600, 0)
    assert proof.projection == pytest.approx(
        float((realized * intended).sum() / intended.square().sum()), rel=1e-5
    )
    expected = float((realized - intended).norm() / intended.norm())
    assert proof.relative_error == pytest.approx(expected, rel=1e-4)
    both = total((proof, proof))
    assert both.elements == 1200
    assert both.projection == pytest.approx(proof.projection)
    assert both.relative_error == pytest.approx(proof.relative_error)


@pytest.mark.parametrize(
    ("written", "least"),
    [
        (lambda _found: BASE, 300),
        (lambda _found: BASE + 0.9 * UPDATE, 150),
        (lambda _found: BASE - UPDATE, 400),
        (lambda _found: BASE.bfloat16() + UPDATE, 100),
        (lambda found: found.roll(1, 0), 500),
        (lambda found: found * torch.nan, 600),
        (lambda found: found * torch.inf, 590),
    ],
    ids=["not merged", "weaker", "subtracted", "rounded twice", "other rows", "NaN", "infinite"],
)
def test_values_that_are_not_the_exact_ones_rounded_once_are_foreign(
    artifact: Path, written: Callable[[torch.Tensor], torch.Tensor], least: int
) -> None:
    change(artifact, "layer.weight", written)
    assert prove(artifact)["layer.weight"].foreign >= least


def test_sums_in_another_order_are_not_foreign(artifact: Path) -> None:
    """The last bits of float32 differ between processors, and can change the side of a tie."""
    change(artifact, "layer.weight", lambda _found: (BASE + UPDATE) * (1 + 2e-7))
    assert prove(artifact)["layer.weight"].foreign == 0


def test_one_changed_value_of_the_base_is_foreign(artifact: Path) -> None:
    change(artifact, "norm.weight", lambda found: torch.cat([found[:-1], torch.tensor([1.507])]))
    proof = prove(artifact)["norm.weight"]
    assert (proof.elements, proof.foreign) == (20, 1)
    assert (proof.projection, proof.relative_error) == (1.0, 0.0)


@pytest.mark.parametrize("onto_original", [False, True])
def test_some_rows_of_each_variant_are_those_of_the_whole_weight(
    artifact: Path, *, onto_original: bool
) -> None:
    """An expert's rows are read alone, and they are not compared before the end."""
    with TensorFiles(artifact) as files:
        weights = ProvenWeights(files, Known(onto_original=onto_original))
        whole = [
            torch.cat(parts)
            for parts in zip(*(found for _, found in weights.blocks("layer.weight")), strict=True)
        ]
        some = weights.span("layer.weight", 1, 1)
        assert len(some) == len(whole) == weights.variants
        assert all(torch.equal(part, rows[1:2]) for part, rows in zip(some, whole, strict=True))
        (norm,) = weights.span("norm.weight", 0, 1)
        assert torch.equal(norm.flatten(), NORM.bfloat16().float())


def test_a_tensor_outside_of_the_text_model_is_compared_by_its_bytes(artifact: Path) -> None:
    tensors = load_file(artifact / "model.safetensors")
    save_file({**tensors, "tower.weight": TOWER}, artifact / "model.safetensors")
    assert prove(artifact)["tower.weight"].foreign == 0
    change(artifact, "tower.weight", lambda tensor: tensor.nan_to_num(nan=0.0))
    assert prove(artifact)["tower.weight"].foreign > 0
