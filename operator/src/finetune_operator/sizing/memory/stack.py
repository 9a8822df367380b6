"""The properties of one trainer image's software that decide memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from finetune_operator.sizing.memory.profile import (
    DOCUMENT,
    Count,
    Flag,
    Number,
    Text,
    VersionPair,
    parse_record,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ConfigDict

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
StackOptimizer = Literal["AdamW", "AdamW8Bit", "PagedAdamW8Bit", "PagedAdamW32Bit", "Sgd"]
Allocator = Literal["ExpandableSegments", "Default"]
Dtype = Literal["BFloat16", "Float32"]

_WIDTHS = {"BFloat16": 2, "Float32": 4}
_MIB = 1 << 20
_FRAGMENTATION = {"expandable": 0.03, "chunks": 0.075, "full logits": 0.2}
"""Fraction of the peak that torch's allocator holds and cannot use.

The first is that of expandable segments. Without them, public runs with a chunked loss have 4 to 11 %, and runs with all
logits at once 10 to 33 %; the middle counts.
"""


@dataclass(frozen=True)
class StackProfile:
    """The properties of a training stack that decide its memory; the defaults describe this version's trainer.

    docs/stack-profile.md explains each member. Sizes are bytes unless a name says tokens or logits.
    """

    __pydantic_config__: ClassVar[ConfigDict] = DOCUMENT

    name: Text = "finetune-trainer"
    version: Text = "1"
    quantization: Quantization = "NF4DoubleQuant"
    quantized_head: Flag = False
    unquantized_dtype: Dtype = "BFloat16"
    cast_to_float32: Flag = False
    adapter_dtype: Dtype = "Float32"
    optimizer: StackOptimizer | None = None
    """The only optimizer of the stack; None if the plan decides."""
    attention: Attention = "Sdpa"
    checkpointing: Checkpointing = "PerLayer"
    loss: Loss = "SupervisedChunks"
    loss_chunk_tokens: Count = 256
    loss_chunk_logits: Count = 1 << 25
    fused_product_tokens: Count = 1536
    saves_matrix_inputs: Flag = False
    evaluation_batch: Count | None = None
    context_bytes: Count = 512 * _MIB
    allocator: Allocator = "ExpandableSegments"
    fragmentation: Number | None = None
    minimum_compute_capability: VersionPair = (8, 0)
    cuda_version: VersionPair = (13, 2)
    vendor: Literal["Nvidia", "Amd"] = "Nvidia"

    @property
    def full_logits(self) -> bool:
        """True if the logits of all positions exist at one time."""
        return self.loss.startswith("FullLogits")

    @property
    def fragmented(self) -> float:
        """Fraction of the peak that the allocator holds and cannot use."""
        if self.fragmentation is not None:
            return self.fragmentation
        if self.allocator == "ExpandableSegments":
            return _FRAGMENTATION["expandable"]
        return _FRAGMENTATION["full logits" if self.full_logits else "chunks"]

    @property
    def unquantized_width(self) -> int:
        """Bytes of one parameter that is not quantized, as it is loaded."""
        return _WIDTHS[self.unquantized_dtype]

    @property
    def adapter_width(self) -> int:
        """Bytes of one trained parameter."""
        return _WIDTHS[self.adapter_dtype]

    @property
    def product_width(self) -> int:
        """Bytes of one element of an adapter's product. A factor in another type is copied for it."""
        return 2

    @property
    def residual_width(self) -> int:
        """Bytes of one activation: float32 norms and embeddings make the residual stream float32."""
        return 4 if self.cast_to_float32 else self.unquantized_width


DEFAULT_STACK = StackProfile()


def parse_stack(document: Mapping[str, Any]) -> StackProfile:
    """Read a stack profile; missing members are those of this version's trainer. Raises ProfileError."""
    return parse_record("stack profile", StackProfile, document)
