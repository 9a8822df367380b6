"""Turn a 16-bit base model into a standard bitsandbytes NF4 checkpoint, weight file by weight file.

The tensors equal those that `from_pretrained(dtype=bfloat16, quantization_config=...)` and `save_pretrained`
write, so plain `from_pretrained` loads the folder. Memory stays bounded by one chunk of a tensor.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.base_model import BaseModel, inspect_base_model, quantization_config
from finetune_trainer.digests import file_digest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.nf4 import (
    BLOCK,
    QuantizedSizes,
    all_finite_bf16,
    bf16_chunks,
    quantization_state,
    quantize_bf16,
    quantize_rest,
)
from finetune_trainer.sources.model import INDEX_FILE, ModelSource
from finetune_trainer.tensorfile import PlannedTensor, TensorEntry, TensorReader, TensorWriter
from finetune_trainer.workspace import digest_of, read_marker, write_json_atomically, write_marker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune_trainer.telemetry import Reporter
    from finetune_trainer.workspace import WorkspaceLayout

_CHUNK_ELEMENTS = 16 * 1024 * 1024
_STATE_SUFFIX = "quant_state.bitsandbytes__nf4"
_FLOATS = frozenset({"BF16", "F16", "F32"})
_FORMAT = 1  # raise when the same base and tools would give other bytes


@dataclass(frozen=True)
class QuantizedModel:
    """What PREPARE reports about the checkpoint; `digest` is over names and bytes of the weight files."""

    architecture: str
    parameters: int
    commit: str | None
    digest: str
    quantized_modules: int
    bytes: int

    def result(self) -> dict[str, Any]:
        """Return the `model` member of the result."""
        return {
            "architecture": self.architecture,
            "parameters": self.parameters,
            "commit": self.commit,
            "digest": self.digest,
            "quantizedModules": self.quantized_modules,
            "bytes": self.bytes,
        }


def quantise(source: ModelSource, layout: WorkspaceLayout, progress: Reporter) -> QuantizedModel:
    """Write `base/` and `model/` of the workspace from `source`.

    Weight files that an interrupted run finished are kept. Raises StageError(InvalidModel) naming a tensor
    that is missing, has another shape or is not finite, and UnsupportedModel as `inspect_base_model` does.
    """
    inputs = digest_of(
        {
            "format": _FORMAT,
            "source": source.identity(),
            "settings": quantization_config().to_dict(),
            "tools": {name: importlib.metadata.version(name) for name in ("bitsandbytes", "transformers")},
        }
    )
    done = read_marker(layout, "quantise", inputs)
    if done is not None and layout.quantized_model.is_dir() and layout.base_layout.is_file():
        return QuantizedModel(**done)
    _copy_small_files(source, layout.base)
    base = inspect_base_model(layout.base)
    partial = layout.root / "model.partial" / inputs.removeprefix("sha256:")[:16]
    _remove_all_but(partial)
    partial.mkdir(parents=True, exist_ok=True)
    files = _quantise_files(source, base, partial, progress)
    _check_complete(base, files)
    _write_checkpoint_files(layout.base, partial, files)
    write_json_atomically(
        layout.base_layout,
        {
            "files": [{"name": file["name"], "tensors": file["tensors"]} for file in files],
            "quantized": list(base.quantized),
        },
    )
    if layout.quantized_model.exists():
        shutil.rmtree(layout.quantized_model)
    partial.replace(layout.quantized_model)
    shutil.rmtree(partial.parent)
    result = QuantizedModel(
        architecture=base.architecture,
        parameters=base.parameters,
        commit=source.commit,
        digest=digest_of({file["name"]: file["digest"] for file in files}),
        quantized_modules=len(base.quantized),
        bytes=sum(int(file["bytes"]) for file in files),
    )
    write_marker(layout, "quantise", inputs, asdict(result))
    return result


def _copy_small_files(source: ModelSource, base: Path) -> None:
    """Replace `base/` with the model's own small files, byte for byte."""
    partial = base.with_name("base.partial")
    for folder in (partial, base):
        if folder.exists():
            shutil.rmtree(folder)
    partial.mkdir(parents=True)
    for path in source.small_files():
        shutil.copyfile(path, partial / path.name)
    partial.replace(base)


def _remove_all_but(partial: Path) -> None:
    """Remove what runs with other inputs left half done: it would fill the volume."""
    if partial.parent.is_dir():
        for other in partial.parent.iterdir():
            if other != partial:
                shutil.rmtree(other)


def _quantise_files(
    source: ModelSource, base: BaseModel, target: Path, progress: Reporter
) -> list[dict[str, Any]]:
    """Quantise each weight file; return one record per file, which is also its proof of completion."""
    records = []
    names = source.weight_files()
    for number, name in enumerate(names):
        record_path = target / f".{name}.done.json"
        if record_path.is_file() and (target / name).is_file():
            records.append(json.loads(record_path.read_text(encoding="utf-8")))
            continue
        path = source.fetch(name, lambda done, total: progress.update("FetchingModel", done, total))
        reader = TensorReader(path)
        total = sum(entry.elements for entry in reader.entries)
        before = number * total

        def advance(done: int, total: int = total, before: int = before) -> None:
            progress.update("Quantizing", before + done, total * len(names))

        output = target / name
        _quantise_file(reader, base, output, advance)
        record = {
            "name": name,
            "tensors": [
                {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape)}
                for entry in reader.entries
            ],
            "digest": file_digest(output),
            "bytes": output.stat().st_size,
        }
        write_json_atomically(record_path, record)
        records.append(record)
        source.release(name)
    for name in names:
        (target / f".{name}.done.json").unlink(missing_ok=True)
    return records


def _quantise_file(
    reader: TensorReader, base: BaseModel, output: Path, advance: Callable[[int], None]
) -> None:
    weights = {f"{module}.weight" for module in base.quantized}
    planned: list[PlannedTensor] = []
    for entry in reader.entries:
        _check_entry(entry, base)
        if entry.name in weights:
            planned.extend(_planned_parts(entry))
        else:
            dtype = "BF16" if entry.dtype in _FLOATS else entry.dtype
            planned.append(PlannedTensor(entry.name, dtype, entry.shape))
    late = [f"{entry.name}.{_STATE_SUFFIX}" for entry in reader.entries if entry.name in weights]
    writer = TensorWriter(output, planned, late)
    done = 0
    try:
        for entry in reader.entries:
            if entry.name in weights:
                _write_quantised(reader, entry, writer)
            else:
                _write_copied(reader, entry, writer)
            done += entry.elements
            advance(done)
    except BaseException:
        writer.abandon()
        raise
    writer.finish()


def _check_entry(entry: TensorEntry, base: BaseModel) -> None:
    shape = base.parameter_shapes.get(entry.name)
    if shape is not None and shape != entry.shape:
        raise StageError(
            Reason.INVALID_MODEL,
            f"tensor {entry.name} must have the shape {list(shape)} that config.json asks for, "
            f"found {list(entry.shape)}",
        )
    if shape is not None and entry.dtype not in _FLOATS:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"weights must be BF16, F16 or F32, found {entry.dtype} in tensor {entry.name}",
        )


def _planned_parts(entry: TensorEntry) -> list[PlannedTensor]:
    sizes = QuantizedSizes(entry.elements)
    return [
        PlannedTensor(entry.name, "U8", (sizes.packed, 1)),
        PlannedTensor(f"{entry.name}.absmax", "U8", (sizes.blocks,)),
        PlannedTensor(f"{entry.name}.quant_map", "F32", (16,)),
        PlannedTensor(f"{entry.name}.nested_absmax", "F32", (sizes.nested_blocks,)),
        PlannedTensor(f"{entry.name}.nested_quant_map", "F32", (256,)),
    ]


def _write_quantised(reader: TensorReader, entry: TensorEntry, writer: TensorWriter) -> None:
    absmax = np.empty(QuantizedSizes(entry.elements).blocks, np.float32)
    # A last block that is not full is scaled by another formula; such weights are small and go whole.
    whole = entry.elements % BLOCK != 0
    chunks = reader.chunks(entry, entry.elements if whole else _CHUNK_ELEMENTS)
    for first, bits in bf16_chunks(chunks, entry.dtype):
        _require_finite(entry, bits)
        if whole:
            weights = torch.from_numpy(bits.copy()).view(torch.bfloat16).reshape(entry.shape)
            packed, scales = quantize_rest(weights)
        else:
            packed, scales = quantize_bf16(bits)
        writer.write(entry.name, first // 2, packed)
        absmax[first // BLOCK : first // BLOCK + scales.size] = scales
    for suffix, tensor in quantization_state(absmax, entry.shape).items():
        data = tensor.contiguous().view(torch.uint8).numpy()
        if suffix == _STATE_SUFFIX:
            writer.append(f"{entry.name}.{suffix}", data.tobytes())
        else:
            writer.write(f"{entry.name}.{suffix}", 0, data)


def _write_copied(reader: TensorReader, entry: TensorEntry, writer: TensorWriter) -> None:
    if entry.dtype not in _FLOATS:
        for first, raw in reader.chunks(entry, _CHUNK_ELEMENTS):
            writer.write(entry.name, first * (entry.end - entry.start) // entry.elements, raw)
        return
    for first, bits in bf16_chunks(reader.chunks(entry, _CHUNK_ELEMENTS), entry.dtype):
        _require_finite(entry, bits)
        writer.write(entry.name, first * 2, bits.view(np.uint8))


def _require_finite(entry: TensorEntry, bits: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    if not all_finite_bf16(bits):
        raise StageError(
            Reason.INVALID_MODEL,
            f"weights must be finite in bf16, found infinity or NaN in tensor {entry.name}; "
            "the file is damaged or the model overflows bf16",
        )


def _check_complete(base: BaseModel, files: list[dict[str, Any]]) -> None:
    present = {tensor["name"] for file in files for tensor in file["tensors"]}
    missing = sorted(base.parameter_shapes.keys() - present - base.tied)
    if missing:
        raise StageError(
            Reason.INVALID_MODEL,
            f"the weight files must hold every tensor of {base.architecture}, missing {len(missing)}: "
            f"{', '.join(missing[:3])}",
        )


def _write_checkpoint_files(base: Path, target: Path, files: list[dict[str, Any]]) -> None:
    """Put config, tokenizer files and, for several weight files, an index beside the quantised weights."""
    for path in base.iterdir():
        if path.name not in {"config.json", "layout.json", INDEX_FILE}:
            shutil.copyfile(path, target / path.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "bfloat16"
    config["quantization_config"] = quantization_config().to_dict()
    write_json_atomically(target / "config.json", config)
    if len(files) > 1 or files[0]["name"] != "model.safetensors":
        weight_map = {}
        for file in files:
            weight_map.update(
                {entry.name: file["name"] for entry in TensorReader(target / file["name"]).entries}
            )
        total = sum(int(file["bytes"]) for file in files)
        write_json_atomically(
            target / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
