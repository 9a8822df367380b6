"""Loads a 4-bit checkpoint for one of several ranks, which reads its own part of the weights and nothing of the others'.

The model is built without memory, adapted, and shared out. Then each rank fills its part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, GenerationConfig
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.cpu_kernels import mend_cpu_kernels
from finetune_trainer.model.dequantized import DequantizedLinear
from finetune_trainer.model.describe import quantization_config
from finetune_trainer.model.load import compute_dtype
from finetune_trainer.model.packed_load import built_empty
from finetune_trainer.model.packed_parameters import packed_parameters
from finetune_trainer.model.packed_weight import Nf4Rows
from finetune_trainer.model.sharding.groups import layers_of, share_out, tied_layers
from finetune_trainer.model.sharding.linear import ShardedLinear4bit, stand_in
from finetune_trainer.model.sharding.packed import ShardedPackedWeight, pieces_of
from finetune_trainer.model.text_class import provide_text_class
from finetune_trainer.model.weight_places import weight_places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch.distributed.device_mesh import DeviceMesh

    from finetune_trainer.model.packed_parameters import PackedParameter
    from finetune_trainer.model.weight_places import WeightPlaces

    Read = Callable[[int, int], torch.Tensor]
    """Returns some rows, from the first up to the last, of a parameter."""
    _Place = tuple[str, int, int]
    """A tensor, and the first and the last of some of its rows."""

# Both are only partly typed; Any is written once here instead of at every call.
bnb: Any = bitsandbytes
_open: Any = safe_open
_STATE = ".quant_state.bitsandbytes__nf4"
_CONSTANTS = ("quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4")
_REMEDY = "use parallelism DataParallel, or one GPU"


@dataclass
class Shell:
    """A model without weights, ready for an adapter, and where each rank finds its part of them.

    4-bit weights have stand-ins of the right shape on the CPU.
    """

    model: Any
    device: torch.device
    sources: dict[tuple[Any, str], Read] = field(default_factory=dict)
    """By module and name of its parameter."""

    def fill(self, adapted: Any, mesh: DeviceMesh) -> None:
        """Share the `adapted` model out to the ranks of `mesh`, and read the part of this rank.

        Raises StageError(QuantizationMismatch) if the checkpoint lacks a tensor.
        """
        for module, name in self.sources:
            shape, dtype = module._parameters[name].shape, module._parameters[name].dtype  # noqa: SLF001 -- torch has no public name
            empty = torch.empty(shape, dtype=dtype, device="meta")
            _put(module, name, empty)
        self.model.tie_weights()
        for value in adapted.parameters():
            if value.requires_grad and not value.is_meta:
                value.data = value.data.to(self.device)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        tied = head.weight is embedding.weight
        share_out(adapted, mesh)
        rank, size = mesh.get_local_rank(), mesh.size()
        for (module, name), read in self.sources.items():
            shared = module._parameters[name]  # noqa: SLF001 -- see above
            rows = shared.shape[0]
            if not isinstance(shared, DTensor):
                _put(module, name, read(0, rows).to(self.device))
                continue
            share = -(-rows // size)
            first, last = min(rows, share * rank), min(rows, share * (rank + 1))
            own = read(first, last).to(self.device)
            _put(
                module,
                name,
                DTensor.from_local(
                    own, mesh, shared.placements, run_check=False, shape=shared.shape, stride=shared.stride()
                ),
            )
        if tied:
            head._parameters["weight"] = embedding.weight  # noqa: SLF001 -- see above
        missing = next((name for name, value in self.model.named_parameters() if _is_empty(value)), None)
        if missing is not None:
            raise _missing(missing)


def load_shell(path: Path, device: str, *, dequantized: bool) -> Shell:
    """Build the model of the checkpoint in `path` without its weights; `dequantized` ones are unpacked while they are read.

    Raises StageError: UnsupportedModel if the weights cannot be shared out, or QuantizationMismatch if a tensor is missing.
    """
    mend_cpu_kernels()
    dtype, place = compute_dtype(device), torch.device("cuda:0" if device == "cuda" else "cpu")
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    provide_text_class(config)
    model: Any = built_empty(config, attention_of(config, device, packed=False).implementation, dtype)
    if not layers_of(model):
        raise _refused("layers that can be gathered by themselves", f"none in {config.model_type}")
    model.tie_weights()
    tied = tied_layers(model)
    if tied is not None:
        raise _refused("layers with weights of their own", f"{tied[1]} of {config.model_type} as {tied[0]}")
    parameters = packed_parameters(model)
    places = weight_places(model, {parameter.name for parameter in parameters})
    shell = Shell(model, place)
    tensors = _Tensors(path, place)
    cut = next((name for name, rows in places.cut.items() if rows.tensor in tensors.packed), None)
    if cut is not None:
        raise _refused(
            "each 4-bit layer in a tensor of its own", f"{cut} of {config.model_type} as rows of another one"
        )
    for parameter in parameters:
        _add_packed(shell, parameter, tensors)
    renamed = places.renamed
    held = {part.tensor for parameter in parameters for part in parameter.parts}
    for tensor in tensors.packed:
        if tensor not in held:
            _add_linear(shell, renamed.get(tensor, tensor), tensor, tensors, dtype, dequantized=dequantized)
    model.tie_weights()
    _add_plain_tensors(shell, tensors, places, dtype)
    # peft leaves it to a model with packed weights what else is trained.
    model.requires_grad_(requires_grad=False)
    # As after `from_pretrained`. peft, TRL and transformers look at these marks.
    model.is_loaded_in_4bit = model.is_quantized = True
    model.config.quantization_config = quantization_config()
    model.hf_quantizer = Bnb4BitHfQuantizer(quantization_config(), pre_quantized=True)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    model.eval()
    return shell


class _Tensors:
    """The tensors of a 4-bit checkpoint by name. Only what is asked for is read."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        files = [
            _open(path, framework="pt", device=str(device)) for path in sorted(folder.glob("*.safetensors"))
        ]
        self._places = {name: file for file in files for name in file.keys()}  # noqa: SIM118 -- safe_open is no mapping
        self.packed = sorted(name.removesuffix(_STATE) for name in self._places if name.endswith(_STATE))
        own = {name for packed in self.packed for name in (packed, *self._parts(packed), f"{packed}.absmax")}
        self.plain = sorted(self._places.keys() - own)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Return rows of a tensor. Raises StageError(QuantizationMismatch) if there is none."""
        found: torch.Tensor = self._place(name).get_slice(name)[first:last]
        return found

    def whole(self, name: str) -> torch.Tensor:
        """Return a tensor. Raises StageError(QuantizationMismatch) if there is none."""
        found: torch.Tensor = self._place(name).get_tensor(name)
        return found

    def constants(self, packed: str) -> dict[str, torch.Tensor]:
        """Return the constants of a 4-bit weight, without the scales of its blocks, by their names."""
        return {name.removeprefix(f"{packed}."): self.whole(name) for name in self._parts(packed)}

    def _parts(self, packed: str) -> Iterator[str]:
        return (f"{packed}.{suffix}" for suffix in _CONSTANTS)

    def _place(self, name: str) -> Any:
        if name not in self._places:
            raise _missing(name)
        return self._places[name]


def _add_linear(
    shell: Shell, name: str, tensor: str, tensors: _Tensors, dtype: torch.dtype, *, dequantized: bool
) -> None:
    path = name.removesuffix(".weight")
    layer: Any = ShardedLinear4bit(shell.model.get_submodule(path), tensors.constants(tensor), dtype)
    scales = f"{tensor}.absmax"

    def packed(first: int, last: int) -> torch.Tensor:
        return tensors.rows(tensor, first, last)

    def absmax(first: int, last: int) -> torch.Tensor:
        return tensors.rows(scales, first, last)[:, None]

    if dequantized:
        values = _values(layer, packed, absmax)
        layer = DequantizedLinear(layer, stand_in((layer.out_features, layer.in_features), dtype))
        shell.sources[layer, "weight"] = values
    else:
        shell.sources[layer, "weight"] = packed
        shell.sources[layer, "absmax"] = absmax
    shell.model.set_submodule(path, layer)


def _add_packed(shell: Shell, parameter: PackedParameter, tensors: _Tensors) -> None:
    pieces = pieces_of(parameter)
    constants = {piece.part.tensor: tensors.constants(piece.part.tensor) for piece in pieces}
    path, _, name = parameter.name.rpartition(".")
    owner = shell.model.get_submodule(path)
    del owner._parameters[name]  # noqa: SLF001 -- torch has no other way to replace a parameter by a module
    weight = ShardedPackedWeight(parameter, constants)
    setattr(owner, name, weight)
    shell.sources[weight, "packed"] = _below_each_other(
        tensors, [(piece.part.tensor, 0, piece.bytes) for piece in pieces]
    )
    scales = _below_each_other(
        tensors, [(f"{piece.part.tensor}.absmax", 0, piece.blocks) for piece in pieces]
    )
    shell.sources[weight, "absmax"] = lambda first, last: scales(first, last)[:, None]


def _below_each_other(tensors: _Tensors, places: Sequence[_Place]) -> Read:
    """Return the reader of rows of several tensors as if they were one, with the rows of each place below each other."""

    def read(first: int, last: int) -> torch.Tensor:
        found = []
        start = 0
        for tensor, begin, end in places:
            own = begin + max(first - start, 0), min(begin + last - start, end)
            if own[0] < own[1]:
                found.append(tensors.rows(tensor, *own))
            start += end - begin
        if not found:
            return tensors.rows(places[0][0], 0, 0)
        return found[0] if len(found) == 1 else torch.cat(found)

    return read


def _values(layer: Any, packed: Read, absmax: Read) -> Read:
    """Return the reader of rows of a matrix, which unpacks the blocks that these rows touch."""
    state, width = layer.quant_state, layer.in_features
    elements = width * layer.out_features

    def read(first: int, last: int) -> torch.Tensor:
        begin, block = first * width // state.blocksize, state.blocksize
        end = -(-last * width // block)
        count = min(elements, end * block) - begin * block
        if last <= first:
            return torch.empty(0, width, dtype=state.dtype)
        rows = Nf4Rows(
            packed(begin * block // 2, -(-(begin * block + count) // 2)).flatten(),
            absmax(begin, end).flatten(),
            state.code,
            state.state2.absmax,
            state.state2.code,
            state.offset,
            (1, count),
            begin,
        )
        found = rows.values(state.dtype).flatten()
        return found[first * width - begin * block :][: (last - first) * width].view(-1, width).clone()

    return read


def _add_plain_tensors(shell: Shell, tensors: _Tensors, places: WeightPlaces, dtype: torch.dtype) -> None:
    """Note where the matrices are that are not 4-bit ones, and read vectors."""
    joined = {tensor for parts in places.joined.values() for tensor in parts}
    for tensor in tensors.plain:
        cut = places.cut_from(tensor)
        for name, rows in cut.items():
            _add_plain(shell, name, [(tensor, rows.first, rows.last)], tensors, dtype)
        if not cut and tensor not in joined:
            _add_plain(shell, places.renamed.get(tensor, tensor), [], tensors, dtype, whole=tensor)
    for name, parts in places.joined.items():
        if any(tensor in tensors.plain for tensor in parts):
            found = [(tensor, 0, places.shapes[tensor][0]) for tensor in parts]
            _add_plain(shell, name, found, tensors, dtype)


def _add_plain(
    shell: Shell,
    name: str,
    places: Sequence[_Place],
    tensors: _Tensors,
    dtype: torch.dtype,
    *,
    whole: str = "",
) -> None:
    """Note where a matrix is, and read a vector. A tensor without a meaning to the architecture is left out.

    Its values are those of the tensor `whole`, or the rows of `places`.
    """
    path, _, own = name.rpartition(".")
    try:
        module = shell.model.get_submodule(path)
    except AttributeError:
        return
    target = module._buffers.get(own, module._parameters.get(own))  # noqa: SLF001 -- as in torch's own loading
    if target is None:
        return
    if own not in module._buffers and target.ndim > 1:  # noqa: SLF001 -- same
        read = _below_each_other(tensors, places or [(whole, 0, len(target))])
        shell.sources[module, own] = lambda first, last: read(first, last).to(dtype)
        return
    value = tensors.whole(whole) if whole else _below_each_other(tensors, places)(0, len(target))
    if own in module._buffers:  # noqa: SLF001 -- same
        module._buffers[own] = value.to(target.dtype)  # noqa: SLF001 -- same
    else:
        _put(module, own, value.to(dtype))


def _put(module: Any, name: str, value: torch.Tensor) -> None:
    module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)  # noqa: SLF001 -- as in torch's own loading


def _is_empty(value: torch.Tensor) -> bool:
    return (value.to_local() if isinstance(value, DTensor) else value).is_meta


def _refused(needed: str, found: str) -> StageError:
    return StageError(
        Reason.UNSUPPORTED_MODEL, f"parallelism FullyShard needs {needed}, found {found}; {_REMEDY}"
    )


def _missing(name: str) -> StageError:
    return StageError(
        Reason.QUANTIZATION_MISMATCH,
        f"the 4-bit checkpoint must hold tensor {name}, found none; run PREPARE again",
    )
