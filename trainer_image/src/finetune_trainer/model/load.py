"""Loads the 4-bit checkpoint that PREPARE wrote, and checks that it is the recorded one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.cpu_kernels import mend_cpu_kernels
from finetune_trainer.model.output_head import prove_head
from finetune_trainer.model.padding_rows import restore_padding_rows
from finetune_trainer.model.text_class import provide_text_class

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.model.layout import BaseLayout


def compute_dtype(device: str) -> torch.dtype:
    """Return the type of the activations: bf16 on a GPU, float32 on a CPU.

    A CPU without AVX512-BF16 multiplies bf16 matrices 10 times slower than float32 ones (measured: 5 and 53
    GFLOP/s on the same two AVX2 cores). With float32 all CPUs compute the same result.
    """
    return torch.bfloat16 if device == "cuda" else torch.float32


def load_quantized(path: Path, device: str) -> Any:
    """Load the checkpoint in `path` onto `device` ("cuda" or "cpu"), ready for an adapter.

    Raises StageError(GpuNotVisible) if `device` is "cuda" and no CUDA device is visible: there is no fallback.
    Raises StageError(UnsupportedModel) as `output_head.prove_head` does. All tensors that are not 4-bit have the type
    of `compute_dtype`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise StageError(
            Reason.GPU_NOT_VISIBLE,
            "the run needs a CUDA device, but this process sees none; check the driver, the device plugin and "
            "runtimeClassName",
        )
    from finetune_trainer.model.packed_load import (  # noqa: PLC0415 -- peft imports torch's compiler, which takes seconds
        has_packed_parameters,
        load_packed,
    )

    mend_cpu_kernels()
    dtype = compute_dtype(device)
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    provide_text_class(config)
    attention = attention_implementation(config, device)
    if has_packed_parameters(copy.deepcopy(config)):
        model = load_packed(
            path, config, dtype, torch.device("cuda:0" if device == "cuda" else "cpu"), attention
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            device_map={"": 0 if device == "cuda" else "cpu"},
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
        )
    cast_model(model, dtype)
    restore_padding_rows(model, path)
    prove_head(model)
    return model


def attention_implementation(config: Any, device: str = "cpu") -> str:
    """Return transformers' name of the attention that a model has for padded rows."""
    return attention_of(config, device, packed=False).implementation


def cast_model(model: Any, dtype: torch.dtype) -> None:
    """Make every part of a loaded model compute in `dtype`."""
    for parameter in model.parameters():
        # transformers ignores `dtype` for the unquantized tensors of a quantized checkpoint. On a CPU without bf16
        # instructions the output head alone would take 90 % of a step.
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    for module in quantized_modules(model).values():
        # The checkpoint names bf16; without this a CPU would cast every activation to it.
        module.compute_dtype = dtype
        module.compute_type_is_set = True
        # peft takes the norms of DoRA from the dequantized weight. They must be those of the weight that is multiplied
        # with: in bf16 a row's norm differs by up to 0.1 %, more than a few steps of training change.
        module.weight.quant_state.dtype = dtype
        # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks the weights in place at the first evaluation. Its
        # backward pass then reads them as if they were not repacked: gradients vanish without an error.
        module.support_avx512bf16_for_cpu = False


def quantized_modules(model: Any) -> dict[str, Any]:
    """Return the 4-bit linear modules of `model` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def check_quantized(model: Any, layout: BaseLayout) -> None:
    """Check that the model has exactly the 4-bit modules that PREPARE recorded, with as many packed bytes.

    Raises StageError(QuantizationMismatch) naming the first difference.
    """
    from finetune_trainer.model.packed_weight import packed_weights  # noqa: PLC0415 -- as above

    linear, packed = quantized_modules(model), packed_weights(model)
    found = linear.keys() | {part.module for weight in packed.values() for part in weight.parameter.parts}
    wanted = layout.adaptable
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    if missing or surplus:
        example = (missing or surplus)[0]
        raise StageError(
            Reason.QUANTIZATION_MISMATCH,
            f"the loaded model must have the {len(wanted)} 4-bit modules that PREPARE wrote, found "
            f"{len(found)} (first difference: {example}); use one trainer image for all stages",
        )
    held = sum(module.weight.nbytes for module in linear.values()) + sum(
        weight.nbytes for weight in packed.values()
    )
    if held != layout.packed_bytes:
        raise StageError(
            Reason.QUANTIZATION_MISMATCH,
            f"the 4-bit weights must hold {layout.packed_bytes} bytes, found {held}; use one trainer image for "
            "all stages",
        )
