"""Compares the written weights with those that the artifact must have, while a forward pass reads them.

One layer of many hardly changes what a model predicts, so predictions alone would not show that it was left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from finetune_trainer.stages.merge.tensor_files import TORCH_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finetune_trainer.stages.merge.reference import Reference
    from finetune_trainer.stages.merge.tensor_files import TensorFiles

# Two computations of the exact weight may add in another order. Relative to the weight, their difference is below
# this; it is 1/512 of a step of bf16.
_SAME = 2.0**-18


@dataclass(frozen=True)
class TensorProof:
    """How one written weight compares with base plus update.

    `foreign` counts the elements that are not the exact value rounded once; `dot`, `intended` and `error` are the sums
    <realized, intended>, |intended|^2 and |realized - intended|^2 over the elements, where the intended update is exact
    less base and the realized one is written less base.
    """

    name: str
    elements: int
    foreign: int
    dot: float = 0.0
    intended: float = 0.0
    error: float = 0.0

    @property
    def projection(self) -> float:
        """The part of the intended update that the written weight has; 1 if there is no update."""
        return self.dot / self.intended if self.intended else 1.0

    @property
    def relative_error(self) -> float:
        """Norm of realized less intended update, relative to the intended one; 0 if there is no update."""
        return math.sqrt(self.error / self.intended) if self.intended else 0.0


def total(proofs: tuple[TensorProof, ...]) -> TensorProof:
    """Return the sums over all tensors."""
    return TensorProof(
        "all tensors",
        sum(proof.elements for proof in proofs),
        sum(proof.foreign for proof in proofs),
        math.fsum(proof.dot for proof in proofs),
        math.fsum(proof.intended for proof in proofs),
        math.fsum(proof.error for proof in proofs),
    )


class ProvenWeights:
    """The weights of an artifact for a forward pass, in three variants: written, exact, and rounded once more.

    Two more follow if the artifact is merged onto other weights than those of the training: the base without update,
    and the weights of the training with it. Every weight that it yields is compared. `finish` compares the tensors that
    the pass did not ask for.
    """

    def __init__(
        self,
        files: TensorFiles,
        reference: Reference,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Take the artifact's files and what they must hold. `progress` gets (bytes compared, in all)."""
        self._files, self._reference = files, reference
        self.variants = 5 if reference.onto_original else 3
        self._progress = progress
        self._done = 0
        self._bytes = sum(files.bytes(name) for name in files.names)
        self._proofs: dict[str, TensorProof] = {}

    def blocks(self, name: str) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield (first row, rows of each variant) of a weight, or its rows alone if it is not merged."""
        merged = name.removesuffix(".weight") in self._reference.modules
        known = name in self._proofs
        yield from self._merged(name) if merged else self._unchanged(name)
        # A model with experts runs once for each variant, and asks for a weight each time.
        self._done += 0 if known else self._files.bytes(name)
        self._progress(self._done, self._bytes)

    def span(self, name: str, first: int, count: int) -> tuple[torch.Tensor, ...]:
        """Return `count` rows of each variant of a weight from row `first` on, or its rows alone if it is not merged.

        They are not compared; `finish` does it.
        """
        written, module = self._files.span(name, first, count), name.removesuffix(".weight")
        if module not in self._reference.modules:
            return (written,)
        dtype = self._files.entry(name).dtype
        parts: list[list[torch.Tensor]] = []
        row = first
        for rows in self._reference.rows(module, first, count):
            second = self._reference.second(name, row, rows.exact, dtype)
            others = () if rows.trained is None else (rows.base, rows.trained)
            parts.append([part.clone() for part in (rows.exact, second, *others)])
            row += rows.exact.shape[0]
        return written, *(torch.cat(variant) for variant in zip(*parts, strict=True))

    def finish(self) -> tuple[TensorProof, ...]:
        """Compare the remaining tensors; return the comparisons of all tensors in the order of their names."""
        for name in sorted(self._files.names & self._reference.kept):
            self._compare_bytes(name)
        for name in sorted(self._files.names - self._proofs.keys()):
            for _ in self.blocks(name):
                pass
        return tuple(self._proofs[name] for name in sorted(self._proofs))

    def _compare_bytes(self, name: str) -> None:
        """Compare a tensor of any type, whose bytes count as its elements here."""
        size = self._files.bytes(name)
        foreign = sum(
            int((written != wanted).sum())
            for written, wanted in zip(self._files.raw(name), self._reference.raw(name), strict=True)
        )
        self._proofs[name] = TensorProof(name, size, foreign)
        self._done += size
        self._progress(self._done, self._bytes)

    def _merged(self, name: str) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        dtype = self._files.entry(name).dtype
        parts = []
        references = self._reference.blocks(name.removesuffix(".weight"))
        for (first, written), rows in zip(self._files.blocks(name), references, strict=True):
            rounded = self._reference.rounded(name, first, rows.exact, dtype)
            parts.append(_compare(name, written, rounded, rows.base, rows.exact))
            second = self._reference.second(name, first, rows.exact, dtype)
            others = () if rows.trained is None else (rows.base, rows.trained)
            yield first, (written, rows.exact, second, *others)
        self._proofs[name] = TensorProof(name, *_sums(parts))

    def _unchanged(self, name: str) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        kind = TORCH_TYPES[self._files.entry(name).dtype]
        elements = foreign = 0
        for (first, written), rows in zip(
            self._files.blocks(name), self._reference.unchanged(name), strict=True
        ):
            elements += written.numel()
            foreign += int((written != rows.to(kind).float()).sum())
            yield first, (written,)
        self._proofs[name] = TensorProof(name, elements, foreign)


def _compare(
    name: str, written: torch.Tensor, rounded: torch.Tensor, base: torch.Tensor, exact: torch.Tensor
) -> TensorProof:
    intended = exact - base
    error = written - exact
    allowed = (rounded - exact).abs_().add_((base.abs() + exact.abs()).mul_(_SAME))
    # A comparison with NaN is false, so NaN is foreign.
    honest = int((error.abs() <= allowed).sum())
    return TensorProof(
        name,
        written.numel(),
        written.numel() - honest,
        _sum(intended * (written - base)),
        _sum(intended.square()),
        _sum(error.square()),
    )


def _sum(values: torch.Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def _sums(parts: list[TensorProof]) -> tuple[int, int, float, float, float]:
    found = total(tuple(parts))
    return found.elements, found.foreign, found.dot, found.intended, found.error
