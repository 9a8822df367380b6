"""The modules that a run's LoRA adapts, and the number of parameters that it trains."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from finetune_trainer.contract.run_spec import Lora
    from finetune_trainer.model.layout import BaseLayout


_STATE_SPACES = frozenset({"mamba", "mixer"})


def adapted_modules(kind: str, quantized: Collection[str]) -> set[str]:
    """Select the modules to adapt from the full names `quantized`; `kind` is AllLinear or AttentionOnly."""
    names = set(quantized)
    return {
        name
        for name in names
        if (kind == "AllLinear" or _in_attention(name)) and not _read_by_kernels(name, names)
    }


def trainable_parameters(layout: BaseLayout, lora: Lora) -> int:
    """Count the adapter's parameters.

    For a weight of `out` x `in`, A has rank x in and B has out x rank (Hu et al., 2021, section 4.1); DoRA adds a
    magnitude for each output (Liu et al., 2024, equation 5).
    """
    adapted = adapted_modules(lora.target_modules, layout.adaptable)
    total = 0
    for module, shape in layout.weights():
        if module in adapted:
            *experts, rows, columns = shape
            outputs = columns if module in layout.transposed else rows
            matrix = lora.rank * (rows + columns) + (outputs if lora.variant == "DoRA" else 0)
            total += prod(experts) * matrix
    return total


def reject_variant(lora: Lora, transposed: Collection[str]) -> None:
    """Raise StageError(UnsupportedModel) for DoRA on matrices that hold a row for each input, `transposed`.

    Its magnitudes belong to outputs, so MERGE would need a whole matrix for each of its rows.
    """
    adapted = sorted(adapted_modules(lora.target_modules, transposed))
    if lora.variant == "DoRA" and adapted:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"with training.lora.variant DoRA every matrix must hold a row for each output, found {adapted[0]} with a row for "
            "each input; choose Standard or RankStabilized, or targetModules without it",
        )


def _read_by_kernels(name: str, quantized: Collection[str]) -> bool:
    """Return whether it is the last matrix of a state space, which fused kernels read past an adapter; peft refuses it."""
    owner, _, own = name.rpartition(".")
    return own == "out_proj" and owner.rpartition(".")[2] in _STATE_SPACES and f"{owner}.in_proj" in quantized


def _in_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.split(".")[:-1])
