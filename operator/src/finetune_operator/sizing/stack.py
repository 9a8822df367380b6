"""The software that trains, as far as it decides memory: data that belongs to one trainer image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Loss = Literal["SupervisedChunks", "TokenChunks", "FusedTile", "FullLogits", "FullLogitsShifted", "FullLogitsBf16"]
Attention = Literal["Sdpa", "SdpaMasked", "Flash", "Eager"]
Checkpointing = Literal["PerLayer", "PerLayerOffloaded"]
Quantization = Literal["NF4DoubleQuant", "NF4", "Int8", "None"]
Optimizer = Literal["AdamW", "AdamW8Bit", "PagedAdamW8Bit", "PagedAdamW32Bit", "Sgd"]
Dtype = Literal["BFloat16", "Float32"]


@dataclass(frozen=True)
class StackProfile:
    """What of a training stack decides its memory. The defaults are this version's trainer.

    ESTIMATE owns this file and completes it.
    """

    name: str = "finetune-trainer"
    version: str = "1"
    quantization: Quantization = "NF4DoubleQuant"
    quantized_head: bool = False
    cast_to_float32: bool = False
    adapter_dtype: Dtype = "BFloat16"
    optimizer: Optimizer = "PagedAdamW8Bit"
    attention: Attention = "Sdpa"
    checkpointing: Checkpointing = "PerLayer"
    loss: Loss = "SupervisedChunks"
    loss_chunk_tokens: int = 256
    minimum_compute_capability: tuple[int, int] = (8, 0)
    cuda_version: tuple[int, int] = (12, 8)
    vendor: Literal["Nvidia", "Amd"] = "Nvidia"


DEFAULT_STACK = StackProfile()
