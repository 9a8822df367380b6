"""Makes a run on fake CPU tensors follow torch's code paths for a CUDA device.

Fake CUDA tensors cannot run without a driver (their backward pass requires a device). So the tensors are fake CPU
ones, and torch's choices by device are replaced:

- scaled dot product attention: without a mask the flash kernel, which uses grouped key and value heads directly;
  with a mask the memory-efficient kernel and its bias in the type of the query (aten/native/transformers/sdp_utils);
- dropout: the fused kernel, which stores one byte per element (aten/native/Dropout.cpp).

Code that cannot run with fake tensors is replaced as well, without changing its allocations:
- `Params4bit`, a tensor subclass that cannot hold a fake tensor and that peft requires by name: a plain parameter;
- moves of modules between devices: no operation;
- the search for chosen experts and their rows (`trace.routing`);
- the search for packed rows in position numbers, which reads values: its result for rows that are not packed.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import dora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.attention import varlen
from transformers import masking_utils

from finetune_trainer.model import packed_attention
from finetune_trainer.stages.train import master_weights
from finetune_trainer.trace.routing import EXPERTS, even_routing

if TYPE_CHECKING:
    from collections.abc import Iterator

# torch's flash kernels for bf16 support no wider heads; the memory-efficient one pads its bias to this many keys.
_FLASH_HEAD = 256
_BIAS_ALIGNMENT = 16


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 -- torch's signature
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002 -- torch's signature
) -> torch.Tensor:
    """Compute scaled dot product attention of (rows, heads, length, width) with CUDA's kernel for it."""
    width = query.shape[-1]
    if attn_mask is None and width <= _FLASH_HEAD:
        if width % 8:
            pad = (0, 8 - width % 8)
            query, key, value = (torch.nn.functional.pad(part, pad) for part in (query, key, value))
        flashed: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
        return flashed[..., :width]
    if enable_gqa and key.shape[1] != query.shape[1]:
        # The memory-efficient kernel has no groups, so torch repeats the heads.
        repeats = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
    bias = None
    if attn_mask is not None:
        bias = attn_mask
        if bias.dtype == torch.bool:
            bias = torch.where(
                bias, torch.zeros((), dtype=query.dtype), torch.full((), -torch.inf, dtype=query.dtype)
            )
        missing = -bias.shape[-1] % _BIAS_ALIGNMENT
        if missing:
            bias = torch.nn.functional.pad(bias, (0, missing))[..., : bias.shape[-1]]
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    needs_gradient = any(part.requires_grad for part in (query, key, value))
    output: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, needs_gradient, dropout_p, is_causal, scale=scale
    )[0]
    return output


def dropout(
    input: torch.Tensor,  # noqa: A002 -- torch's signature
    p: float = 0.5,
    training: bool = True,  # noqa: FBT001, FBT002 -- torch's signature
    inplace: bool = False,  # noqa: ARG001, FBT001, FBT002 -- torch's signature
) -> torch.Tensor:
    """Apply dropout with the fused kernel."""
    return torch.native_dropout(input, p, train=True)[0] if training and p > 0 else input


@contextmanager
def cuda_paths(experts: int | None = EXPERTS) -> Iterator[None]:
    """Follow CUDA's code paths during the context. `experts` is the number of those that get rows (`trace.routing`)."""
    functional = torch.nn.functional
    with ExitStack() as stack:
        for owner, name, replacement in (
            (functional, "scaled_dot_product_attention", attention),
            (functional, "dropout", dropout),
            (masking_utils, "find_packed_sequence_indices", lambda _positions: None),
            (dora, "dequantize_module_weight", _dequantized),
            (master_weights, "dequantize_module_weight", _dequantized),
            (BaseTunerLayer, "_move_adapter_to_device_of_base_layer", _stay),
            (torch.nn.Module, "to", _stay),
            (packed_attention, "has_kernel", _has_kernel),
            # cuDNN's kernels, which TRAIN does not use, cannot be asked for without a driver.
            (varlen, "_select_backend", lambda *_arguments: varlen._FLASH_ATTENTION_BACKEND),
        ):
            stack.enter_context(patch.object(owner, name, replacement))
        stack.enter_context(even_routing(experts))
        yield


def _dequantized(module: Any) -> Any:
    """Dequantize as peft does for a `Params4bit`, which it recognizes by its class name."""
    if not isinstance(module, Linear4bit):
        return module.weight
    return dequantize_4bit(module.weight.data, module.quant_state)


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    return query.dtype == torch.bfloat16 and query.shape[-1] == value.shape[-1] <= _FLASH_HEAD


def _stay(module: Any, *_arguments: Any, **_settings: Any) -> Any:
    return module
