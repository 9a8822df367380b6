"""The trained adapter as one update per weight, checked before anything is merged.

The matrices are read when they are needed: those of a large model together would take gigabytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import FLOATS, TensorEntry, read_header
from finetune_trainer.quantization.low_rank import add_low_rank, scale_rows
from finetune_trainer.stages.merge.tensor_files import TORCH_TYPES
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import digest_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune_trainer.model.layout import BaseLayout

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(?:\.weight)?")
# Settings of peft with which the tensors mean something else than the sum below.
_OTHER_FORMS = (
    "alora_invocation_tokens", "arrow_config", "layer_replication", "lora_bias", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_qalora",
)  # fmt: skip
# These initializations also change the base weights, which are then not those of the base model.
_CHANGED_BASE = ("corda", "loftq", "olora", "pissa")


@dataclass(frozen=True)
class LowRankUpdate:
    """LoRA update of one weight W (out x in): W + scale * B A. A DoRA magnitude then rescales the rows.

    `a` is (rank, in), `b` (out, rank), `magnitude` (out); all float32. If the weight is `transposed`, its rows are inputs.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float
    magnitude: NDArray[np.float32] | None = None
    transposed: bool = False

    def squared_norm(self) -> float:
        """Squared Frobenius norm of scale * B A, from the two rank x rank Gram matrices."""
        a, b = self.a.astype(np.float64), self.b.astype(np.float64)
        return self.scale**2 * max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))

    def apply(self, base: NDArray[np.float32], first_row: int, out: NDArray[np.float32]) -> None:
        """Write rows of the updated weight into `out`; `base` are the same rows of W, from `first_row` on.

        LoRA: Hu et al. 2021, section 4.1. DoRA: Liu et al. 2024, equation 5; the norm is that of each output
        row, as in peft. All is in float32, and equal on every machine.
        """
        rows = slice(first_row, first_row + base.shape[0])
        if self.transposed:
            left, right = np.ascontiguousarray(self.a[:, rows].T), np.ascontiguousarray(self.b.T)
            add_low_rank(base, right, left, self.scale, out)
            return
        add_low_rank(base, self.a, self.b[rows], self.scale, out)
        if self.magnitude is not None:
            scale_rows(out, self.magnitude[rows])


@dataclass(frozen=True)
class StackedUpdate:
    """The updates of the matrices of all experts, which stand below each other in one tensor; each has `rows` rows."""

    matrices: tuple[LowRankUpdate, ...]
    rows: int

    def squared_norm(self) -> float:
        """Squared Frobenius norm of all updates."""
        return math.fsum(matrix.squared_norm() for matrix in self.matrices)

    def apply(self, base: NDArray[np.float32], first_row: int, out: NDArray[np.float32]) -> None:
        """Write rows of the updated weight into `out`; no update reaches into the rows of the next expert."""
        done = 0
        while done < base.shape[0]:
            expert, row = divmod(first_row + done, self.rows)
            count = min(self.rows - row, base.shape[0] - done)
            chosen = slice(done, done + count)
            self.matrices[expert].apply(base[chosen], row, out[chosen])
            done += count


@dataclass(frozen=True)
class RowsUpdate:
    """The updates of layers whose weights stand below each other in one tensor: (first row, last row, update) in order."""

    parts: tuple[tuple[int, int, LowRankUpdate], ...]

    def squared_norm(self) -> float:
        """Squared Frobenius norm of all updates."""
        return math.fsum(update.squared_norm() for _, _, update in self.parts)

    def apply(self, base: NDArray[np.float32], first_row: int, out: NDArray[np.float32]) -> None:
        """Write rows of the updated weight into `out`; rows of layers without an adapter are those of the base."""
        np.copyto(out, base)
        for first, last, update in self.parts:
            start, end = max(first, first_row), min(last, first_row + base.shape[0])
            if start < end:
                chosen = slice(start - first_row, end - first_row)
                update.apply(base[chosen], start - first, out[chosen])


Update = LowRankUpdate | StackedUpdate | RowsUpdate
"""The update of one tensor of the weight files."""


class AdapterUpdates(Mapping[str, Update]):
    """The updates of the tensors of the weight files, by their names without `.weight`; each access reads one from the file.

    `replaced` has the tensors that training replaced as a whole (peft's `modules_to_save`), by their name in the base.
    Several threads may read it.
    """

    def __init__(self, folder: Path, layout: BaseLayout | None = None) -> None:
        """Read the adapter's config and header in `folder`.

        `layout` tells which weights have a row for each input, and where the files hold a module's weight under another name
        or in a larger tensor. Without it, none is so.

        Raises StageError(ArtifactVerificationFailed) for settings that mean something else than an update as above, and
        for tensors that do not belong together; InternalError for a tensor of unknown meaning.
        """
        self._config: dict[str, Any] = json.loads(
            (folder / "adapter_config.json").read_text(encoding="utf-8")
        )
        self._transposed = layout.transposed if layout is not None else frozenset()
        self._places = layout.places if layout is not None else {}
        _require_known_form(self._config, transposed=bool(self._transposed))
        self._path = folder / "adapter_model.safetensors"
        self._entries = read_header(self._path)
        self._parts: dict[str, dict[str, TensorEntry]] = {}
        self.replaced: dict[str, TensorEntry] = {}
        for entry in self._entries:
            self._add(entry)
        for module, parts in self._parts.items():
            self._require_whole(module, parts)
        self._modules: dict[str, list[str]] = {}
        for module in self._parts:
            place = self._places.get(module)
            self._modules.setdefault(module if place is None else place.module, []).append(module)

    def __getitem__(self, tensor: str) -> Update:
        modules = self._modules[tensor]
        if self._rows(tensor) is None or self._places[modules[0]].count == self._rows(tensor):
            return self._update(modules[0])
        parts = []
        for module in modules:
            rows, update = self._places[module], self._update(module)
            if isinstance(update, LowRankUpdate):
                parts.append((rows.first, rows.last, update))
        return RowsUpdate(tuple(sorted(parts, key=lambda part: part[0])))

    def _update(self, module: str) -> Update:
        parts = self._parts[module]
        magnitude = parts.get("magnitude_vector")
        a, b = self.read(parts["A"]), self.read(parts["B"])
        scale, transposed = self._scale(module, a.shape[-2]), module in self._transposed
        lengths = None if magnitude is None else self.read(magnitude)
        if a.ndim == 2:
            return LowRankUpdate(a, b, scale, None if lengths is None else lengths.reshape(-1), transposed)
        matrices = tuple(
            LowRankUpdate(
                a[expert], b[expert], scale, None if lengths is None else lengths[expert], transposed
            )
            for expert in range(a.shape[0])
        )
        return StackedUpdate(matrices, a.shape[2] if transposed else b.shape[1])

    def __contains__(self, tensor: object) -> bool:
        return tensor in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of the tensor that an update belongs to."""
        module = self._modules[tensor][0]
        parts, rows = self._parts[module], self._rows(tensor)
        *experts, outputs, _ = parts["B"].shape
        inputs = parts["A"].shape[-1]
        if rows is not None:
            return rows, inputs
        return (*experts, inputs, outputs) if module in self._transposed else (*experts, outputs, inputs)

    def _rows(self, tensor: str) -> int | None:
        """Return the number of rows of a tensor that holds modules under other names; None for any other tensor."""
        return max((rows.last for rows in self._places.values() if rows.module == tensor), default=None)

    def digest(self) -> str:
        """Return the digest of matrices and settings, which decide the bytes of a merge."""
        return digest_of({"weights": file_digest(self._path), "config": self._config})

    def read(self, entry: TensorEntry) -> NDArray[np.float32]:
        """Return a tensor of the adapter in float32."""
        with self._path.open("rb") as file:
            file.seek(entry.start)
            raw = np.fromfile(file, np.uint8, entry.end - entry.start)
        values: NDArray[np.float32] = torch.from_numpy(raw).view(TORCH_TYPES[entry.dtype]).float().numpy()
        return values.reshape(entry.shape)

    def require_trained(self) -> None:
        """Raise StageError(AdapterUntrained) if a value is not finite or all updates together are zero."""
        for entry in self._entries:
            if not bool(np.isfinite(self.read(entry)).all()):
                raise StageError(
                    Reason.ADAPTER_UNTRAINED,
                    f"the adapter's values must be finite, found NaN or infinity in {entry.name}; train again",
                )
        if not any(update.squared_norm() for update in self.values()):
            raise StageError(
                Reason.ADAPTER_UNTRAINED,
                "the adapter's update must not be zero, found it is: a merge would publish the base model; check "
                "learning rate, steps and labels",
            )

    def _add(self, entry: TensorEntry) -> None:
        name = entry.name.removeprefix(_PREFIX)
        match = _TENSOR.fullmatch(name)
        if entry.dtype not in FLOATS:
            raise _invalid(f"hold floats in 16 or 32 bits, found {entry.name} of type {entry.dtype}")
        if match is None:
            module = name.rpartition(".")[0]
            saved = self._config.get("modules_to_save") or ()
            # As in peft, `norm` also names input_layernorm.
            if not any(module.endswith(part) for part in saved):
                raise StageError(
                    Reason.INTERNAL_ERROR,
                    f"the adapter must hold only LoRA matrices, found tensor {entry.name}",
                )
            self.replaced[name] = entry
            return
        parts = self._parts.setdefault(match["module"], {})
        if match["part"] in parts:
            raise _invalid(f"hold each matrix once, found a second {entry.name}")
        parts[match["part"]] = entry

    def _require_whole(self, module: str, parts: Mapping[str, TensorEntry]) -> None:
        """Check that the tensors of a module belong together and agree with the config."""
        a, b, magnitude = parts.get("A"), parts.get("B"), parts.get("magnitude_vector")
        if a is None or b is None:
            raise _invalid(f"hold both matrices of {module}, found only {', '.join(sorted(parts))}")
        plain = len(a.shape) == len(b.shape) and len(a.shape) in (2, 3) and a.shape[:-2] == b.shape[:-2]
        if not plain or a.shape[-2] != b.shape[-1]:
            raise _invalid(
                f"hold matrices A (rank, in) and B (out, rank) of {module}, found {a.shape} and {b.shape}"
            )
        if a.shape[-2] != self._rank(module):
            raise _invalid(
                f"have the rank {self._rank(module)} that its config gives to {module}, found {a.shape[-2]}"
            )
        if (magnitude is not None) != bool(self._config.get("use_dora")):
            raise _invalid(
                f"hold magnitudes if and only if its config says use_dora, found otherwise in {module}"
            )
        if magnitude is not None and magnitude.elements != math.prod(b.shape[:-1]):
            raise _invalid(
                f"hold {math.prod(b.shape[:-1])} magnitudes of {module}, found {magnitude.elements}"
            )
        place = self._places.get(module)
        if place is not None and b.shape[:-1] != (place.count,):
            raise _invalid(
                f"have {place.count} outputs of {module} as the base does, found {list(b.shape[:-1])}"
            )
        if magnitude is not None and module in self._transposed:
            raise _invalid(f"have no magnitudes of {module}, whose weight has a row for each input")

    def _rank(self, module: str) -> int:
        return int(self._pattern("rank_pattern", module, self._config["r"]))

    def _scale(self, module: str, rank: int) -> float:
        alpha = float(self._pattern("alpha_pattern", module, self._config["lora_alpha"]))
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank

    def _pattern(self, name: str, module: str, default: Any) -> Any:
        """Return the value of the first pattern that matches the end of the module's name, as peft does."""
        patterns: Mapping[str, Any] = self._config.get(name) or {}
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default


def read_updates(folder: Path, layout: BaseLayout | None = None) -> AdapterUpdates:
    """Open and check the adapter in `folder`; `layout` is that of the base.

    Raises as AdapterUpdates and its `require_trained` do.
    """
    updates = AdapterUpdates(folder, layout)
    updates.require_trained()
    return updates


def _require_known_form(config: Mapping[str, Any], *, transposed: bool) -> None:
    # peft says so of a model whose matrices have a row for each input.
    forms = _OTHER_FORMS if transposed else (*_OTHER_FORMS, "fan_in_fan_out")
    other = next((name for name in forms if config.get(name)), None)
    if config.get("peft_type", "LORA") != "LORA":
        raise _invalid(f"be a LoRA adapter, found the type {config['peft_type']}")
    if other is not None:
        raise _invalid(f"be a plain LoRA adapter, found the setting {other} in its config")
    if config.get("bias", "none") != "none":
        raise _invalid(f"leave the biases of the base, found bias: {config['bias']}")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGED_BASE):
        raise _invalid(
            f"belong to the base's own weights, found init_lora_weights: {start}, which changes them"
        )


def _invalid(text: str) -> StageError:
    return StageError(
        Reason.ARTIFACT_VERIFICATION_FAILED,
        f"the adapter must {text}; train again, or report a bug if it persists",
    )
