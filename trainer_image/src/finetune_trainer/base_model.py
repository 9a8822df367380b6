"""What a base model is, learned from its config on the meta device, and whether it can be tuned here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path

_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class BaseModel:
    """Facts about a supported model.

    `parameter_shapes` has every parameter by its name in the weight files; `tied` those that may be missing
    there because they share another one's values; `quantized` the linear modules that become 4-bit.
    """

    architecture: str
    parameters: int
    parameter_shapes: dict[str, tuple[int, ...]]
    tied: frozenset[str]
    quantized: tuple[str, ...]


def quantization_config() -> BitsAndBytesConfig:
    """Return the one setting this product trains with: NF4, double quantisation, bf16 compute."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def inspect_base_model(folder: Path) -> BaseModel:
    """Build the model in `folder` on the meta device (no weights are read) and describe it.

    Raises StageError(InvalidModel) for a config that is none, UnsupportedModel for what cannot be trained and
    merged faithfully: mixtures of experts, remote code, quantised checkpoints, unknown or multimodal types.
    """
    document = _read_config(folder / "config.json")
    _refuse_unsupported(document)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, OSError) as error:
        # transformers has no common base class for a config that it cannot build.
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"config.json must describe a text model that transformers can build, found model type "
            f"{document.get('model_type')!r}: {first_line}",
        ) from error
    architecture = type(model).__name__
    declared = document.get("architectures")
    if isinstance(declared, list) and declared and architecture not in declared:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the model must be a causal language model, found architecture {', '.join(map(str, declared))}",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if any(".experts" in name for name in shapes):
        raise _mixture_of_experts()
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"every projection must be a plain linear layer, found Conv1D in {architecture}; choose another model",
        )
    tied = frozenset(model.all_tied_weights_keys)
    parameters = model.num_parameters()
    settings = quantization_config()
    skipped = Bnb4BitHfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)  # noqa: SLF001 -- the quantizer reads it the same way
    replace_with_bnb_linear(model, modules_to_not_convert=skipped, quantization_config=settings)
    quantized = tuple(name for name, module in model.named_modules() if isinstance(module, Linear4bit))
    if not quantized:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the model must have linear layers to quantise, found none in {architecture}",
        )
    return BaseModel(architecture, parameters, shapes, tied, quantized)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(
            Reason.INVALID_MODEL, f"config.json must be readable JSON, found: {error}"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("model_type"), str):
        raise StageError(Reason.INVALID_MODEL, "config.json must be an object with `model_type`, found none")
    return document


def _refuse_unsupported(document: dict[str, Any]) -> None:
    if "quantization_config" in document:
        method = document["quantization_config"]
        name = method.get("quant_method", "unknown") if isinstance(method, dict) else "unknown"
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the base must be in 16 or 32 bits, found a checkpoint quantised already ({name}); "
            "name the original model",
        )
    if document.get("auto_map"):
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            "the model must be one that transformers knows, found `auto_map` in config.json: "
            "code from a repository is never run here",
        )
    for part in (document, document.get("text_config")):
        if isinstance(part, dict) and any((_count(part.get(key)) > 1) for key in _EXPERT_COUNTS):
            raise _mixture_of_experts()
    if any(key in document for key in ("vision_config", "audio_config")) or document.get(
        "is_encoder_decoder"
    ):
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            "the model must take text alone, found a multimodal or encoder-decoder config",
        )


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _mixture_of_experts() -> StageError:
    return StageError(
        Reason.UNSUPPORTED_MODEL,
        "the model must be dense, found a mixture of experts: its experts would not be quantised",
    )
