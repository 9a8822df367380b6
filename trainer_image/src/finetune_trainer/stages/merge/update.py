"""The trained adapter as one update per weight, checked before anything is merged."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(?:\.weight)?")


@dataclass(frozen=True)
class LowRankUpdate:
    """LoRA update of one weight W (out x in): W + scale * B A. A DoRA magnitude then rescales the rows.

    `a` is (rank, in), `b` (out, rank), `magnitude` (out); all float32.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None

    def squared_norm(self) -> float:
        """Squared Frobenius norm of scale * B A, from the two rank x rank Gram matrices."""
        gram = (self.b.double().T @ self.b.double()) * (self.a.double() @ self.a.double().T)
        return self.scale**2 * max(0.0, float(gram.sum()))

    def apply(self, weight: torch.Tensor, first_row: int) -> None:
        """Update, in place, float32 rows of W that begin at `first_row`.

        LoRA: Hu et al. 2021, section 4.1. DoRA: Liu et al. 2024, equation 5; the norm is that of each output
        row, as in peft.
        """
        rows = slice(first_row, first_row + weight.shape[0])
        weight.addmm_(self.b[rows], self.a, alpha=self.scale)
        if self.magnitude is not None:
            weight.mul_((self.magnitude[rows] / torch.linalg.vector_norm(weight, dim=1)).unsqueeze(1))


def read_updates(folder: Path) -> dict[str, LowRankUpdate]:
    """Read the adapter in `folder`: updates by the name of the module in the base model.

    Raises StageError(AdapterUntrained) if a value is not finite or the whole update is zero, and InternalError for an
    unknown tensor, which would otherwise be lost.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        match = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            raise StageError(
                Reason.INTERNAL_ERROR, f"the adapter must hold only LoRA matrices, found tensor {name}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise StageError(
                Reason.ADAPTER_UNTRAINED,
                f"the adapter's values must be finite, found NaN or infinity in {name}; train again",
            )
        parts.setdefault(match["module"], {})[match["part"]] = tensor.float()
    updates = {
        module: LowRankUpdate(part["A"], part["B"], scale, part.get("magnitude_vector"))
        for module, part in parts.items()
    }
    if sum(update.squared_norm() for update in updates.values()) == 0:
        raise StageError(
            Reason.ADAPTER_UNTRAINED,
            "the adapter's update must not be zero, found it is: a merge would publish the base model; check "
            "learning rate, steps and labels",
        )
    return updates
