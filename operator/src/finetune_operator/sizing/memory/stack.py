"""The software that trains, as far as it decides memory: data that belongs to one trainer image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune_operator.sizing.memory.profile import parse_record

if TYPE_CHECKING:
    from collections.abc import Mapping

Loss = Literal[
    "SupervisedChunks",
    "TokenChunks",
    "FusedTile",
    "Liger",
    "CutCrossEntropy",
    "FullLogits",
    "FullLogitsShifted",
    "FullLogitsBf16",
]
Attention = Literal["Sdpa", "SdpaMasked", "Flash", "Eager"]
Checkpointing = Literal["PerLayer", "PerLayerOffloaded"]
Quantization = Literal["NF4DoubleQuant", "NF4", "Int8", "None"]
Optimizer = Literal["AdamW", "AdamW8Bit", "PagedAdamW8Bit", "PagedAdamW32Bit", "Sgd"]
Dtype = Literal["BFloat16", "Float32"]

_WIDTHS = {"BFloat16": 2, "Float32": 4}
_MIB = 1 << 20


@dataclass(frozen=True)
class StackProfile:
    """What of a training stack decides its memory. The defaults are this version's trainer."""

    name: str = "finetune-trainer"
    version: str = "1"
    quantization: Quantization = "NF4DoubleQuant"
    quantized_head: bool = False
    unquantized_dtype: Dtype = "BFloat16"
    cast_to_float32: bool = False
    adapter_dtype: Dtype = "BFloat16"
    optimizer: Optimizer = "PagedAdamW8Bit"
    attention: Attention = "Sdpa"
    checkpointing: Checkpointing = "PerLayer"
    loss: Loss = "SupervisedChunks"
    loss_chunk_tokens: int = 256
    loss_chunk_logits: int = 1 << 25
    fused_product_tokens: int = 1536
    saves_matrix_inputs: bool = False
    evaluation_batch: int | None = None
    context_bytes: int = 512 * _MIB
    fragmentation: float = 0.03
    minimum_compute_capability: tuple[int, int] = (8, 0)
    cuda_version: tuple[int, int] = (13, 2)
    vendor: Literal["Nvidia", "Amd"] = "Nvidia"

    @property
    def unquantized_width(self) -> int:
        """Bytes of one parameter that is not quantised, as it is loaded."""
        return _WIDTHS[self.unquantized_dtype]

    @property
    def adapter_width(self) -> int:
        """Bytes of one trained parameter."""
        return _WIDTHS[self.adapter_dtype]

    @property
    def product_width(self) -> int:
        """Bytes of an element of what adapters multiply."""
        return 2

    @property
    def residual_width(self) -> int:
        """Bytes of one activation: float32 norms and embeddings make the residual stream float32."""
        return 4 if self.cast_to_float32 else self.unquantized_width


DEFAULT_STACK = StackProfile()


def parse_stack(document: Mapping[str, Any]) -> StackProfile:
    """Read a stack profile; what it leaves out is as in this version's trainer. Raises ProfileError."""
    return parse_record("stack profile", StackProfile, document)
