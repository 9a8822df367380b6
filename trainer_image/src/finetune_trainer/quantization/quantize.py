"""The step of PREPARE that turns a 16-bit base model into the workspace's NF4 checkpoint, with or without a cache.

With a cache, `model/` of the workspace is a symbolic link into it. Every stage of the job must mount the cache at the
same path; read-only is enough. `base/` is always a copy, because a job may put its chat template there.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from finetune_trainer.cpu import available_cpus
from finetune_trainer.model.describe import BaseModel, inspect_base_model, quantization_config
from finetune_trainer.quantization.builder import (
    QuantizedModel,
    QuantizedModelBuilder,
    copy_small_files,
    quantized_bytes,
)
from finetune_trainer.quantization.cache import MANIFEST, ModelCache, keep_alive, read_manifest
from finetune_trainer.quantization.file_quantizer import FileQuantizer
from finetune_trainer.sources.model import used_small_files
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import digest_of, read_marker, write_marker

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.sources.model import ModelSource
    from finetune_trainer.telemetry.reporter import Reporter
    from finetune_trainer.workspace.layout import WorkspaceLayout

_FORMAT = 2  # increase it if the same base and tools would give other bytes
_TOOLS = ("bitsandbytes", "torch", "transformers")  # their versions decide the bytes
_log = logging.getLogger(__name__)


def quantize_model(
    source: ModelSource, layout: WorkspaceLayout, progress: Reporter, cache: Path | None = None
) -> QuantizedModel:
    """Make `base/` and `model/` of the workspace for `source`, or take them from the folder `cache` if it has them.

    Weight files that an interrupted run finished are kept. A cache that is read-only, full or damaged is not used, and
    the log has a warning. Raises StageError(InvalidModel) with the name of a tensor that is missing, not finite or of
    another shape, and UnsupportedModel as `inspect_base_model` does.
    """
    inputs = _inputs(source)
    with FileQuantizer(available_cpus()) as quantizer:
        done = read_marker(layout, "quantise", inputs)
        step = _Step(source, layout, progress, inputs, quantizer)
        if done is not None and step.is_installed(cache):
            return QuantizedModel(**done)
        entry = step.cached(cache) if cache is not None else None
        if entry is None:
            partial = step.build_in_workspace()
            _install_base(partial, layout)
            if (partial / "model").is_dir():
                _remove(layout.quantized_model)
                (partial / "model").replace(layout.quantized_model)
        else:
            partial = entry
            _install_base(entry, layout)
            _link(entry / "model", layout.quantized_model)
        result = read_manifest(partial, inputs)
        if result is None:
            raise RuntimeError(f"{partial} must have a manifest, found none; run PREPARE again")
        write_marker(layout, "quantise", inputs, result)
        shutil.rmtree(layout.root / "model.partial", ignore_errors=True)
        return QuantizedModel(**result)


class _Step:
    """The common parts of the two ways to a checkpoint: in the workspace, or in the cache."""

    def __init__(
        self,
        source: ModelSource,
        layout: WorkspaceLayout,
        progress: Reporter,
        inputs: str,
        quantizer: FileQuantizer,
    ) -> None:
        self._source = source
        self._layout = layout
        self._progress = progress
        self._inputs = inputs
        self._quantizer = quantizer
        self._key = f"nf4-{inputs.removeprefix('sha256:')[:32]}"
        self._base: BaseModel | None = None

    def is_installed(self, cache: Path | None) -> bool:
        """Whether the workspace has the files of an earlier run, and the cache still has the target of its link."""
        if not (self._layout.quantized_model.is_dir() and self._layout.base_layout.is_file()):
            return False
        if not self._layout.quantized_model.is_symlink():
            return True
        if cache is None:
            return False
        entry = ModelCache(cache, self._quantizer.threads).find(self._key, self._inputs)
        return entry is not None and self._layout.quantized_model.resolve() == (entry / "model").resolve()

    def build_in_workspace(self) -> Path:
        """Complete the folder of the workspace that becomes `base/` and `model/`, and return it."""
        partial = self._layout.root / "model.partial" / self._key
        _remove_all_but(partial)
        moved = (partial / MANIFEST).is_file() and not (partial / "model").is_dir()
        if moved and not self._layout.quantized_model.is_dir():
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        QuantizedModelBuilder(self._source, partial, self._inputs, self._progress).build(
            self._inspected(), self._quantizer
        )
        return partial

    def cached(self, folder: Path) -> Path | None:
        """Return the cache's entry, built if it is not there; None if the cache has no space or cannot be written."""
        cache = ModelCache(folder, self._quantizer.threads)
        self._progress.update("FetchingModel", 0, None)
        entry = cache.find(self._key, self._inputs)
        if entry is not None:
            _log.info("model cache: using entry %s", self._key)
            return entry
        base = self._inspected()
        needed = quantized_bytes(base)
        partial = None
        try:
            partial = cache.open_partial(self._key, self._layout.root / "model.partial" / "cache.json")
            free = shutil.disk_usage(partial).free + _bytes_in(partial)
            if free < needed:
                _log.warning(
                    "model cache: %d bytes are free and %d are needed: this job keeps the model in its workspace; "
                    "free space in the cache",
                    free,
                    needed,
                )
                cache.discard(partial)
                return None
            QuantizedModelBuilder(
                self._source, partial, self._inputs, self._progress, keep_alive(partial)
            ).build(base, self._quantizer)
            return cache.publish(partial, self._key, self._inputs)
        except OSError as error:
            # A fault of the workspace itself shows again when the model is built there.
            _log.warning(
                "model cache: it cannot be written (%s): this job keeps the model in its workspace",
                error.strerror or type(error).__name__,
            )
            if partial is not None:
                self._rescue(partial)
            return None

    def _inspected(self) -> BaseModel:
        if self._base is None:
            folder = self._layout.root / "model.partial" / "inspected"
            copy_small_files(self._source, folder)
            self._base = inspect_base_model(folder, rehearsed=True)
            shutil.rmtree(folder)
        return self._base

    def _rescue(self, partial: Path) -> None:
        """Move the unfinished build from the cache into the workspace, so that nothing is downloaded twice."""
        target = self._layout.root / "model.partial" / self._key
        try:
            shutil.copytree(partial, target, dirs_exist_ok=True)
        except OSError as error:
            _log.warning("model cache: its unfinished build could not be kept (%s)", error)
            shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)


def _inputs(source: ModelSource) -> str:
    """Return the digest of all inputs that decide the checkpoint's bytes."""
    return digest_of(
        {
            "format": _FORMAT,
            "source": source.identity(),
            "smallFiles": {path.name: file_digest(path) for path in used_small_files(source)},
            "settings": quantization_config().to_dict(),
            "tools": {name: importlib.metadata.version(name) for name in _TOOLS},
        }
    )


def _remove_all_but(partial: Path) -> None:
    """Remove unfinished builds of other inputs: they would fill the volume."""
    if partial.parent.is_dir():
        for other in partial.parent.iterdir():
            if other != partial and other.is_dir():
                shutil.rmtree(other)


def _install_base(built: Path, layout: WorkspaceLayout) -> None:
    """Copy `base/`: the built folder stays complete, in case this process stops during the copy."""
    partial = layout.base.with_name("base.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(built / "base", partial)
    _remove(layout.base)
    partial.replace(layout.base)


def _link(target: Path, link: Path) -> None:
    """Replace `link` by a symbolic link, or by a copy on file systems that have none."""
    _remove(link)
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        _log.warning("model cache: the workspace supports no symbolic link (%s): copying", error.strerror)
        partial = link.with_name("model.copy")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(target, partial)
        partial.replace(link)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total
