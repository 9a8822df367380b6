"""Builds the folders of a quantized base model: `base/` with the small files, `model/` with the 4-bit checkpoint.

The tensors equal those of `from_pretrained(dtype=bfloat16, quantization_config=...)` and `save_pretrained`, so plain
`from_pretrained` loads the folder. An interrupted build continues after the last finished file.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.result import ModelResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.describe import BaseModel, quantization_config
from finetune_trainer.model.safetensors_file import FLOATS, TensorEntry, read_header
from finetune_trainer.model.support import reject_tensor_names, tensor_list
from finetune_trainer.model.weight_places import Rows
from finetune_trainer.quantization.cache import MANIFEST, write_manifest
from finetune_trainer.quantization.file_quantizer import FileQuantizer
from finetune_trainer.quantization.tied_weights import require_equal_ties
from finetune_trainer.sources.model import INDEX_FILE, DirectoryModel, ModelSource, used_small_files
from finetune_trainer.workspace.digests import parts_digest
from finetune_trainer.workspace.layout import digest_of, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from finetune_trainer.telemetry.reporter import Reporter

_RECORDS = "records"


@dataclass(frozen=True)
class QuantizedModel:
    """The facts about the 4-bit checkpoint in PREPARE's result; `digest` is over the weight files' names and bytes."""

    architecture: str
    parameters: int
    commit: str | None
    digest: str
    quantized_modules: int
    bytes: int

    def result(self) -> ModelResult:
        """Return the `model` member of the result, still without the model's config."""
        return ModelResult(**asdict(self))


def quantized_bytes(base: BaseModel) -> int:
    """Estimate the size of the weight files to within 1 %.

    A quantized weight takes 4 bits and 1/64 byte of scales, any other 16 bits.
    """
    quantized = sum(prod(base.parameter_shapes[name]) for name in base.quantized_tensors)
    others = sum(prod(shape) for shape in base.parameter_shapes.values()) - quantized
    return quantized * 33 // 64 + others * 2


def copy_small_files(source: ModelSource, target: Path) -> None:
    """Replace the folder `target` with the small files that the model uses, byte for byte."""
    partial = target.with_name(f"{target.name}.partial")
    for folder in (partial, target):
        if folder.exists():
            shutil.rmtree(folder)
    partial.mkdir(parents=True)
    for path in used_small_files(source):
        shutil.copyfile(path, partial / path.name)
    partial.replace(target)


class QuantizedModelBuilder:
    """Builds `base/`, `model/` and the manifest in `folder`.

    `on_activity` is called often during the build, as a sign of life.
    """

    def __init__(
        self,
        source: ModelSource,
        folder: Path,
        inputs: str,
        progress: Reporter,
        on_activity: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._folder = folder
        self._inputs = inputs
        self._progress = progress
        self._on_activity = on_activity

    def build(self, base: BaseModel, quantizer: FileQuantizer) -> None:
        """Complete the folder for the model that `base` describes.

        Raises StageError(InvalidModel) with the name of a tensor that is missing, surplus, not finite, has another
        shape, or differs from the one that it is tied to, and UnsupportedModel for tensors that are quantized already.
        """
        if not (self._folder / MANIFEST).is_file():
            copy_small_files(self._source, self._folder / "base")
            (self._folder / "model").mkdir(exist_ok=True)
            (self._folder / _RECORDS).mkdir(exist_ok=True)
            self._check_before_fetching(base)
            files = self._quantize_files(base, quantizer)
            names = _names(files)
            _check_names(base, names)
            _check_joined(base, files)
            written = {tensor: self._folder / "model" / file for tensor, file in names.items()}
            spelled = {base.known(name): name for name in names}
            ties = [(spelled.get(name, name), spelled.get(other, other)) for name, other in base.tied]
            require_equal_ties(ties, written)
            self._write_checkpoint_files(files, base.unquantized)
            write_json_atomically(
                self._folder / "base" / "layout.json",
                {
                    "files": [{"name": file["name"], "tensors": file["tensors"]} for file in files],
                    **_layout_members(base, spelled),
                },
            )
            result = QuantizedModel(
                architecture=base.architecture,
                parameters=base.parameters,
                commit=self._source.commit,
                digest=digest_of({file["name"]: file["digest"] for file in files}),
                quantized_modules=len(base.quantized),
                bytes=sum(int(file["bytes"]) for file in files),
            )
            write_manifest(self._folder, self._inputs, asdict(result), quantizer.threads)
        shutil.rmtree(self._folder / _RECORDS, ignore_errors=True)

    def _check_before_fetching(self, base: BaseModel) -> None:
        """Check the index, and the headers of local weight files, before a download of hours."""
        index = self._folder / "base" / INDEX_FILE
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            _check_names(base, {str(name): str(file) for name, file in names.items()})
        if isinstance(self._source, DirectoryModel):
            seen: dict[str, str] = {}
            for name in self._source.weight_files():
                entries = read_header(self._source.path(name))
                _check_entries(entries, base, name, seen)
                seen.update((entry.name, name) for entry in entries)
            _check_names(base, seen)

    def _quantize_files(self, base: BaseModel, quantizer: FileQuantizer) -> list[dict[str, Any]]:
        """Quantize each weight file; return a record for each, which also proves that the file is finished."""
        weights = base.quantized_tensors
        total = sum(prod(shape) for shape in base.parameter_shapes.values())
        records: list[dict[str, Any]] = []
        before = 0
        for name in self._source.weight_files():
            record_path = self._folder / _RECORDS / f"{name}.json"
            output = self._folder / "model" / name
            record = _finished(record_path, output, quantizer.threads)
            if record is None:
                path = self._source.fetch(name, self._fetched)
                entries = read_header(path)
                _check_entries(entries, base, name, _names(records))

                def advance(done: int, before: int = before) -> None:
                    self._on_activity()
                    self._progress.update("Quantizing", min(before + done, total), total)

                chosen = {entry.name for entry in entries if base.known(entry.name) in weights}
                quantizer.quantize(path, chosen, output, advance)
                record = {
                    "name": name,
                    "tensors": [
                        {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape)}
                        for entry in entries
                    ],
                    "digest": parts_digest(output, quantizer.threads),
                    "bytes": output.stat().st_size,
                }
                write_json_atomically(record_path, record)
            # This is repeated after a restart, because the earlier process may have stopped just before it.
            self._source.release(name)
            before += sum(prod(tensor["shape"]) for tensor in record["tensors"])
            records.append(record)
        return records

    def _fetched(self, done: int, total: int | None) -> None:
        self._on_activity()
        self._progress.update("FetchingModel", done, total)

    def _write_checkpoint_files(self, files: list[dict[str, Any]], unquantized: tuple[str, ...]) -> None:
        """Add config, tokenizer files and, for several weight files, an index to the quantized weights."""
        base, target = self._folder / "base", self._folder / "model"
        for path in base.iterdir():
            if path.name not in {"config.json", "layout.json", INDEX_FILE}:
                shutil.copyfile(path, target / path.name)
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = "bfloat16"
        config["quantization_config"] = quantization_config().to_dict()
        if unquantized:
            # Otherwise transformers would guess, before matrices are tied.
            config["quantization_config"]["llm_int8_skip_modules"] = list(unquantized)
        write_json_atomically(target / "config.json", config)
        if len(files) > 1 or files[0]["name"] != "model.safetensors":
            weight_map = {
                entry.name: file["name"] for file in files for entry in read_header(target / file["name"])
            }
            total = sum(int(file["bytes"]) for file in files)
            write_json_atomically(
                target / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
            )


def _finished(record_path: Path, output: Path, threads: Executor) -> dict[str, Any] | None:
    """Return the record of a weight file that an earlier process finished, if the file still matches it."""
    if not (record_path.is_file() and output.is_file()):
        return None
    record: dict[str, Any] = json.loads(record_path.read_text(encoding="utf-8"))
    intact = output.stat().st_size == record["bytes"] and parts_digest(output, threads) == record["digest"]
    return record if intact else None


def _names(records: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the file name of each tensor."""
    return {tensor["name"]: record["name"] for record in records for tensor in record["tensors"]}


def _layout_members(base: BaseModel, spelled: Mapping[str, str]) -> dict[str, Any]:
    """Return what the layout tells of the quantized tensors; `spelled` has the names in the files of known tensors."""
    tensors = {module: base.tensor_of(module) for module in base.quantized}
    held = {module: spelled.get(known, known) for module, known in tensors.items()}
    places = {
        module: base.cut.get(module) or Rows(name, 0, base.parameter_shapes[tensors[module]][0])
        for module, name in held.items()
        if module in base.cut or name not in {f"{module}.weight", module}
    }
    members: dict[str, Any] = {
        "quantized": list(dict.fromkeys(name.removesuffix(".weight") for name in held.values()))
    }
    if base.transposed:
        members["transposed"] = list(base.transposed)
    if places:
        members["places"] = {
            module: [rows.tensor, rows.first, rows.last] for module, rows in sorted(places.items())
        }
    return members


def _check_joined(base: BaseModel, files: list[dict[str, Any]]) -> None:
    """Check that tensors which transformers joins have as many rows together as the model's. Raises StageError(InvalidModel)."""
    wanted: dict[str, int] = {}
    for tensor, name in base.joined.items():
        wanted[name] = wanted.get(name, 0) + base.parameter_shapes[tensor][0]
    found = dict.fromkeys(wanted, 0)
    for file in files:
        for tensor in file["tensors"]:
            if tensor["name"] in base.joined:
                found[base.joined[tensor["name"]]] += tensor["shape"][0]
    for name, rows in wanted.items():
        if found[name] != rows:
            parts = [tensor for tensor, own in base.joined.items() if own == name]
            raise StageError(
                Reason.INVALID_MODEL,
                f"the tensors {tensor_list(parts)} must have the {rows} rows together that config.json asks for, found "
                f"{found[name]}; correct config.json or fetch the model again",
            )


def _check_names(base: BaseModel, files: dict[str, str]) -> None:
    """Compare the tensors' names in `files` (tensor to file) with those of the architecture."""
    reject_tensor_names(files)
    found = {base.known(name) for name in files}
    missing = base.parameter_shapes.keys() - found - base.optional
    if missing and base.changed & files.keys():
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the weight files must hold each layer of {base.architecture} as rows of one tensor, found tensors that transformers "
            f"changes in another way while it loads them, {tensor_list(base.changed & files.keys())}; choose another model",
        )
    twice = sorted(name for name, known in base.aliases.items() if name in files and known in files)
    if twice:
        raise StageError(
            Reason.INVALID_MODEL,
            f"the weight files must hold each tensor once, found {twice[0]} and {base.aliases[twice[0]]}, which are two "
            "names of one; remove one of them",
        )
    if missing:
        raise StageError(
            Reason.INVALID_MODEL,
            f"the weight files must hold every tensor of {base.architecture}, missing {tensor_list(missing)}; "
            "fetch the model again or correct config.json",
        )
    surplus = {
        name for name in files if base.known(name) not in base.parameter_shapes and not base.ignores(name)
    }
    if surplus:
        raise StageError(
            Reason.INVALID_MODEL,
            f"the weight files must hold tensors of {base.architecture} only, found others {tensor_list(surplus)} "
            f"(in {files[min(surplus)]}); correct config.json or remove these tensors",
        )


def _check_entries(entries: list[TensorEntry], base: BaseModel, file: str, earlier: dict[str, str]) -> None:
    """Compare a file's header with the architecture and with the files before it."""
    reject_tensor_names(entry.name for entry in entries)
    for entry in entries:
        if entry.name in earlier:
            raise StageError(
                Reason.INVALID_MODEL,
                f"each tensor must be in one weight file, found {entry.name} in {earlier[entry.name]} and {file}; "
                "remove one of them",
            )
        shape = base.parameter_shapes.get(base.known(entry.name))
        if shape is None:
            continue
        if entry.dtype.startswith("F8_"):
            raise StageError(
                Reason.UNSUPPORTED_MODEL,
                f"the base must be in 16 or 32 bits, found a checkpoint quantized already: tensor {entry.name} in "
                f"{file} is {entry.dtype}; choose the original model",
            )
        if entry.dtype not in FLOATS:
            raise StageError(
                Reason.UNSUPPORTED_MODEL,
                f"weights must be BF16, F16 or F32, found {entry.dtype} in tensor {entry.name} of {file}; "
                "save the model in bf16",
            )
        if shape != entry.shape and not (entry.name in base.joined and shape[1:] == entry.shape[1:]):
            raise StageError(
                Reason.INVALID_MODEL,
                f"tensor {entry.name} in {file} must have the shape {list(shape)} that config.json asks for, "
                f"found {list(entry.shape)}; correct config.json or fetch the model again",
            )
        if not entry.elements:
            raise StageError(
                Reason.INVALID_MODEL,
                f"tensor {entry.name} in {file} must hold values, found none (shape {list(entry.shape)}); "
                "correct config.json",
            )
