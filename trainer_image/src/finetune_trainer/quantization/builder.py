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
from finetune_trainer.model.layout import KEPT_FOLDER
from finetune_trainer.model.safetensors_file import FLOATS, TensorEntry, read_header
from finetune_trainer.model.support import reject_tensor_names, tensor_list
from finetune_trainer.quantization.cache import MANIFEST, write_manifest
from finetune_trainer.quantization.file_quantizer import FileQuantizer
from finetune_trainer.quantization.kept_tensors import copy_tensors
from finetune_trainer.quantization.tied_weights import require_equal_ties
from finetune_trainer.sources.model import (
    INDEX_FILE,
    SINGLE_FILE,
    DirectoryModel,
    ModelSource,
    used_small_files,
)
from finetune_trainer.workspace.digests import parts_digest
from finetune_trainer.workspace.layout import digest_of, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
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

    A quantized weight takes 4 bits and 1/64 byte of scales, any other 16 bits. Tensors outside of a text model may have 32.
    """
    quantized = sum(prod(base.parameter_shapes[name]) for name in base.quantized_tensors)
    others = sum(prod(shape) for shape in base.parameter_shapes.values()) - quantized
    return quantized * 33 // 64 + (others + base.other_parameters) * 2


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
            stored = {name: own for name in names if (own := base.stored(name)) is not None}
            written = {own: self._folder / "model" / names[name] for name, own in stored.items()}
            spelled = {known: own for name, own in stored.items() if (known := base.known(name)) is not None}
            ties = [(spelled.get(name, name), spelled.get(other, other)) for name, other in base.tied]
            require_equal_ties(ties, written)
            self._write_checkpoint_files(files, base)
            write_json_atomically(
                self._folder / "base" / "layout.json",
                {
                    "files": [{"name": file["name"], "tensors": file["tensors"]} for file in files],
                    **base.layout_members(spelled),
                    **({"textNames": stored} if base.part is not None else {}),
                },
            )
            parts = [(name, part) for file in files for name, part in file["parts"].items()]
            result = QuantizedModel(
                architecture=base.architecture,
                parameters=base.parameters,
                commit=self._source.commit,
                digest=digest_of({name: part["digest"] for name, part in parts}),
                quantized_modules=len(base.quantized),
                bytes=sum(int(part["bytes"]) for _, part in parts),
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
            record = _finished(record_path, self._folder / "model", quantizer.threads)
            if record is None:
                path = self._source.fetch(name, self._fetched)
                entries = read_header(path)
                _check_entries(entries, base, name, _names(records))

                def advance(done: int, before: int = before) -> None:
                    self._on_activity()
                    self._progress.update("Quantizing", min(before + done, total), total)

                stored = {entry.name: base.stored(entry.name) for entry in entries}
                chosen = {own for name, own in stored.items() if own and base.known(name) in weights}
                outputs = self._write_parts(path, name, stored, chosen, quantizer, advance)
                record = {
                    "name": name,
                    "tensors": [
                        {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape)}
                        for entry in entries
                    ],
                    "parts": {
                        output: {
                            "digest": parts_digest(self._folder / "model" / output, quantizer.threads),
                            "bytes": (self._folder / "model" / output).stat().st_size,
                        }
                        for output in outputs
                    },
                }
                write_json_atomically(record_path, record)
            # This is repeated after a restart, because the earlier process may have stopped just before it.
            self._source.release(name)
            before += sum(prod(tensor["shape"]) for tensor in record["tensors"])
            records.append(record)
        return records

    def _write_parts(
        self,
        path: Path,
        file: str,
        stored: dict[str, str | None],
        chosen: Collection[str],
        quantizer: FileQuantizer,
        advance: Callable[[int], None],
    ) -> list[str]:
        """Write what the 4-bit checkpoint has of the weight `file` at `path`; return its files, relative to the checkpoint.

        `stored` has the name in there of each tensor, and None for tensors that are kept as they are. `chosen`
        names those in there that become 4-bit ones.
        """
        names = {name: own for name, own in stored.items() if own is not None}
        outputs: list[str] = []
        if names or not stored:
            quantizer.quantize(path, chosen, self._folder / "model" / file, advance, names)
            outputs.append(file)
        if len(names) < len(stored):
            output = f"{KEPT_FOLDER}/{file}"
            (self._folder / "model" / KEPT_FOLDER).mkdir(exist_ok=True)
            kept = {name: name for name in stored.keys() - names.keys()}
            copy_tensors(path, kept, self._folder / "model" / output)
            outputs.append(output)
        return outputs

    def _fetched(self, done: int, total: int | None) -> None:
        self._on_activity()
        self._progress.update("FetchingModel", done, total)

    def _write_checkpoint_files(self, files: list[dict[str, Any]], base: BaseModel) -> None:
        """Add config, tokenizer files and, for several weight files, an index to the quantized weights."""
        small, target = self._folder / "base", self._folder / "model"
        for path in small.iterdir():
            if path.name not in {"config.json", "layout.json", INDEX_FILE}:
                shutil.copyfile(path, target / path.name)
        config: dict[str, Any] = (
            json.loads((small / "config.json").read_text(encoding="utf-8"))
            if base.part is None
            else base.part.document()
        )
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = "bfloat16"
        config["quantization_config"] = quantization_config().to_dict()
        if base.unquantized:
            # Otherwise transformers would guess, before matrices are tied.
            config["quantization_config"]["llm_int8_skip_modules"] = list(base.unquantized)
        write_json_atomically(target / "config.json", config)
        held = {file["name"]: file["parts"].get(file["name"]) for file in files}
        sizes = {name: int(part["bytes"]) for name, part in held.items() if part is not None}
        if sizes.keys() != {SINGLE_FILE}:
            weight_map = {entry.name: name for name in sizes for entry in read_header(target / name)}
            total = sum(sizes.values())
            write_json_atomically(
                target / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
            )


def _finished(record_path: Path, folder: Path, threads: Executor) -> dict[str, Any] | None:
    """Return the record of a weight file that an earlier process finished, if its files in `folder` still match it."""
    if not record_path.is_file():
        return None
    record: dict[str, Any] = json.loads(record_path.read_text(encoding="utf-8"))
    parts: dict[str, Any] | None = record.get("parts")  # an earlier release wrote none
    return record if parts is not None and _intact(folder, parts, threads) else None


def _intact(folder: Path, parts: dict[str, Any], threads: Executor) -> bool:
    return all(
        (folder / name).is_file()
        and (folder / name).stat().st_size == part["bytes"]
        and parts_digest(folder / name, threads) == part["digest"]
        for name, part in parts.items()
    )


def _names(records: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the file name of each tensor."""
    return {tensor["name"]: record["name"] for record in records for tensor in record["tensors"]}


def _check_joined(base: BaseModel, files: list[dict[str, Any]]) -> None:
    """Check that tensors which transformers joins have as many rows together as the model's. Raises StageError(InvalidModel)."""
    wanted: dict[str, int] = {}
    for tensor, name in base.joined.items():
        wanted[name] = wanted.get(name, 0) + base.parameter_shapes[tensor][0]
    found = dict.fromkeys(wanted, 0)
    for file in files:
        for tensor in file["tensors"]:
            known = base.known(tensor["name"])
            if known is not None and known in base.joined:
                found[base.joined[known]] += tensor["shape"][0]
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
    known = {name: own for name in files if (own := base.known(name)) is not None}
    missing = base.parameter_shapes.keys() - set(known.values()) - base.optional
    changed = {name for name, own in known.items() if own in base.changed}
    if missing and changed:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the weight files must hold each layer of {base.architecture} as rows of one tensor, found tensors that transformers "
            f"changes in another way while it loads them, {tensor_list(changed)}; choose another model",
        )
    _check_spellings(known)
    if missing:
        raise StageError(
            Reason.INVALID_MODEL,
            f"the weight files must hold every tensor of {base.architecture}, missing {tensor_list(missing)}; "
            "fetch the model again or correct config.json",
        )
    surplus = {
        name for name, own in known.items() if own not in base.parameter_shapes and not base.ignores(own)
    }
    if surplus:
        raise StageError(
            Reason.INVALID_MODEL,
            f"the weight files must hold tensors of {base.architecture} only, found others {tensor_list(surplus)} "
            f"(in {files[min(surplus)]}); correct config.json or remove these tensors",
        )


def _check_spellings(known: dict[str, str]) -> None:
    """Refuse two names of one tensor; `known` has the model's name of each tensor."""
    first: dict[str, str] = {}
    for name, own in sorted(known.items(), key=lambda item: (item[0] != item[1], item[0])):
        if own in first:
            raise StageError(
                Reason.INVALID_MODEL,
                f"the weight files must hold each tensor once, found {name} and {first[own]}, which are two names of one; "
                "remove one of them",
            )
        first[own] = name


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
        known = base.known(entry.name)
        shape = None if known is None else base.parameter_shapes.get(known)
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
        if shape != entry.shape and not (known in base.joined and shape[1:] == entry.shape[1:]):
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
