"""Loads a 4-bit checkpoint of a model with packed parameters, which plain `from_pretrained` would hold in 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import bitsandbytes
import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.describe import quantization_config
from finetune_trainer.model.matrix_stack import use_own_experts
from finetune_trainer.model.packed_parameters import (
    PackedParameter,
    PackedPart,
    kept_layers,
    packed_names,
    packed_parameters,
)
from finetune_trainer.model.packed_weight import Nf4Rows, PackedWeight
from finetune_trainer.model.weight_places import Rows, WeightPlaces, weight_places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# Both are only partly typed; Any is written once here instead of at every call.
bnb: Any = bitsandbytes
_open: Any = safe_open
_STATE = ".quant_state.bitsandbytes__nf4"


def has_packed_parameters(config: Any) -> bool:
    """Return whether a model of this `config` is loaded by `load_packed`.

    So it is if not all of its matrices are plain, or if its weight files hold a linear layer in another way than the model.
    """
    model = built_empty(config, "eager", torch.bfloat16, buffers=True)
    if packed_names(model) or kept_layers(model):
        return True
    places = weight_places(model, ())
    head = model.get_output_embeddings()
    layers = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return bool(places.cut or places.joined or layers.intersection(places.renamed.values()))


def load_packed(path: Path, config: Any, dtype: torch.dtype, device: torch.device, attention: str) -> Any:
    """Load the checkpoint in `path` onto `device`. Each tensor is read once, and none is unpacked.

    Raises StageError(QuantizationMismatch) if a tensor is missing.
    """
    model = built_empty(config, attention, dtype)
    parameters = packed_parameters(model)
    places = weight_places(model, {parameter.name for parameter in parameters})
    with _Tensors(path, device) as tensors:
        _place_packed(model, parameters, tensors)
        held = {part.tensor for parameter in parameters for part in parameter.parts}
        _place_plain(model, places, tensors, held, dtype)
        for tensor in tensors.packed_names - held:
            cut = places.cut_from(tensor)
            for name, rows in cut.items():
                _place_rows(model, name, rows, tensors)
            if not cut:
                _place_linear(model, places.renamed.get(tensor, tensor), tensor, tensors, device)
    model.tie_weights()
    _require_complete(model)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    # As after `from_pretrained`. peft, TRL and transformers look at these marks.
    model.is_loaded_in_4bit = model.is_quantized = True
    model.config.quantization_config = quantization_config()
    model.hf_quantizer = Bnb4BitHfQuantizer(quantization_config(), pre_quantized=True)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval()


def built_empty(config: Any, attention: str, dtype: torch.dtype, *, buffers: bool = False) -> Any:
    """Build the model of a `config` without memory for its weights; with `buffers`, these have no values either.

    The config loses its `quantization_config`.
    """
    if hasattr(config, "quantization_config"):
        # The model is built as it is without quantization, and its linear layers are replaced one by one.
        del config.quantization_config
    with init_empty_weights(include_buffers=buffers):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    use_own_experts(model)
    return model


class _Tensors:
    """The tensors of a 4-bit checkpoint by name. Use it in a `with` statement."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._files = [
            _open(path, framework="pt", device=str(device)) for path in sorted(folder.glob("*.safetensors"))
        ]
        self._places = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 -- safe_open is no mapping
        self.packed_names = {name.removesuffix(_STATE) for name in self._places if name.endswith(_STATE)}
        own = {name for packed in self.packed_names for name in self.parts(packed)}
        self.plain_names = self._places.keys() - self.packed_names - own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._files.clear()
        self._places.clear()

    def parts(self, packed: str) -> Iterator[str]:
        """Yield the names of the small tensors of a 4-bit weight."""
        for suffix in (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", _STATE):
            yield f"{packed}{suffix}"

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor. Raises StageError(QuantizationMismatch) if there is none."""
        if name not in self._places:
            raise _missing(name)
        found: torch.Tensor = self._places[name].get_tensor(name)
        return found

    def state(self, packed: str) -> dict[str, torch.Tensor]:
        """Return the small tensors of a 4-bit weight by name."""
        return {name: self.read(name) for name in self.parts(packed)}


def _place_packed(model: Any, parameters: tuple[PackedParameter, ...], tensors: _Tensors) -> None:
    for parameter in parameters:
        parts: list[list[Nf4Rows]] = [[] for _ in range(parameter.experts)]
        for part in sorted(parameter.parts, key=lambda part: part.first):
            for expert, rows in _rows(parameter, part, tensors):
                parts[expert].append(rows)
        path, _, name = parameter.name.rpartition(".")
        owner = model.get_submodule(path)
        del owner._parameters[name]  # noqa: SLF001 -- torch has no other way to replace a parameter by a module
        setattr(owner, name, PackedWeight(parameter, parts))


def _rows(parameter: PackedParameter, part: PackedPart, tensors: _Tensors) -> Iterator[tuple[int, Nf4Rows]]:
    """Yield (expert, its rows) of a tensor."""
    packed = tensors.read(part.tensor).flatten()
    state = bnb.functional.QuantState.from_dict(qs_dict=tensors.state(part.tensor), device=packed.device)
    matrix = (part.last - part.first, parameter.columns)
    if part.expert is not None or parameter.experts == 1:
        yield part.expert or 0, _nf4(packed, state, state.absmax, matrix, 0)
        return
    elements = matrix[0] * matrix[1]
    for expert in range(parameter.experts):
        first, last = expert * elements // 2, (expert + 1) * elements // 2
        blocks = slice(expert * elements // state.blocksize, (expert + 1) * elements // state.blocksize)
        yield expert, _nf4(packed[first:last], state, state.absmax[blocks], matrix, blocks.start)


def _nf4(
    packed: torch.Tensor, state: Any, scales: torch.Tensor, shape: tuple[int, int], first: int
) -> Nf4Rows:
    nested = state.state2
    return Nf4Rows(packed, scales, state.code, nested.absmax, nested.code, state.offset, shape, first)


def _place_plain(
    model: Any, places: WeightPlaces, tensors: _Tensors, held: set[str], dtype: torch.dtype
) -> None:
    """Place all tensors that are not 4-bit ones, without those that are `held` already."""
    pieces = {tensor for parts in places.joined.values() for tensor in parts}
    for tensor in tensors.plain_names - held - pieces:
        value = tensors.read(tensor).to(dtype)
        cut = places.cut_from(tensor)
        for name, rows in cut.items():
            _place(model, name, value[rows.first : rows.last].clone())
        if not cut:
            _place(model, places.renamed.get(tensor, tensor), value)
    for name, parts in places.joined.items():
        if any(tensor in tensors.plain_names for tensor in parts):
            _place(model, name, torch.cat([tensors.read(tensor) for tensor in parts]).to(dtype))


def _place(model: Any, name: str, value: torch.Tensor) -> None:
    path, _, own = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return  # a tensor without a meaning to the architecture, which PREPARE knows
    if own in module._parameters:  # noqa: SLF001 -- as in torch's own loading
        module._parameters[own] = torch.nn.Parameter(value, requires_grad=False)  # noqa: SLF001 -- same
    elif own in module._buffers:  # noqa: SLF001 -- same
        module._buffers[own] = value.to(module._buffers[own].dtype)  # noqa: SLF001 -- same


def _place_linear(model: Any, name: str, tensor: str, tensors: _Tensors, device: torch.device) -> None:
    layer = _empty_layer(model, name, nested=True)
    layer.weight = bnb.nn.Params4bit.from_prequantized(
        data=tensors.read(tensor),
        quantized_stats=tensors.state(tensor),
        requires_grad=False,
        device=device,
        module=layer,
    )
    _replace(model, name, layer)


def _place_rows(model: Any, name: str, rows: Rows, tensors: _Tensors) -> None:
    """Place a layer whose weight is some rows of a tensor, with the scales of its own blocks in float32."""
    layer = _empty_layer(model, name, nested=False)
    packed = tensors.read(rows.tensor).flatten()
    whole = bnb.functional.QuantState.from_dict(qs_dict=tensors.state(rows.tensor), device=packed.device)
    first, last = rows.first * layer.in_features, rows.last * layer.in_features
    blocks = slice(first // whole.blocksize, -(-last // whole.blocksize))
    own = _nf4(
        packed[first // 2 : -(-last // 2)],
        whole,
        whole.absmax[blocks],
        (rows.count, layer.in_features),
        blocks.start,
    )
    state = own.state(whole.dtype)
    layer.weight = bnb.nn.Params4bit(
        own.packed.clone().reshape(-1, 1),
        requires_grad=False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=False,
        quant_type=state.quant_type,
        bnb_quantized=True,
        module=layer,
    )
    layer.quant_state = state
    _replace(model, name, layer)


def _empty_layer(model: Any, name: str, *, nested: bool) -> Any:
    before = model.get_submodule(name.removesuffix(".weight"))
    with torch.device("meta"):
        return bnb.nn.Linear4bit(
            before.in_features,
            before.out_features,
            bias=before.bias is not None,
            compress_statistics=nested,
            quant_type="nf4",
        )


def _replace(model: Any, name: str, layer: Any) -> None:
    path = name.removesuffix(".weight")
    layer.bias = model.get_submodule(path).bias
    layer.requires_grad_(requires_grad=False)
    model.set_submodule(path, layer)


def _require_complete(model: Any) -> None:
    left: Mapping[str, Any] = dict(model.named_parameters())
    missing = next((name for name, parameter in left.items() if parameter.is_meta), None)
    if missing is not None:
        raise _missing(missing)


def _missing(name: str) -> StageError:
    return StageError(
        Reason.QUANTIZATION_MISMATCH,
        f"the 4-bit checkpoint must hold tensor {name}, found none; run PREPARE again",
    )
