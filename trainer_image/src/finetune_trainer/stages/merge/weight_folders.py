"""The weight files of an artifact: from the workspace into a staged folder, continued after a kill.

While they are written, a thread checks that what is read is what PREPARE reported. A difference fails the stage before
anything is published.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer.cpu import available_cpus
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.merge_target import merges_onto_original
from finetune_trainer.quantization.original import read_original
from finetune_trainer.stages.merge.exact import QuantizedBase, StoredBase, WeightFiles
from finetune_trainer.stages.merge.journal import Journal
from finetune_trainer.stages.merge.shards import split_files
from finetune_trainer.stages.merge.update import read_updates
from finetune_trainer.stages.merge.weights import (
    MergeInputs,
    check_weights,
    merge_weights,
    require_matching,
)
from finetune_trainer.workspace.digests import weights_digest
from finetune_trainer.workspace.layout import digest_of
from finetune_trainer.workspace.trained_base import require_trained_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.model.layout import BaseLayout
    from finetune_trainer.stages.merge.journal import FileRecord
    from finetune_trainer.workspace.layout import WorkspaceLayout

_FORMAT = 1  # increase it if the same inputs would give other bytes
_ADAPTER = "adapter_model.safetensors"

WeightsKind = Literal["Merged", "BaseAsTrained"]
"""The kinds of artifacts that have a whole model's weights."""


def stored_dtype(run: RunSpec, kind: WeightsKind) -> Literal["BFloat16", "AsBase"]:
    """Return the type of an artifact's weights; the base as trained is always in bf16."""
    return run.output.dtype if kind == "Merged" else "BFloat16"


def stored_layout(run: RunSpec, workspace: WorkspaceLayout, kind: WeightsKind) -> BaseLayout:
    """Return the files, tensors and types of an artifact with weights."""
    return split_files(read_base_layout(workspace).stored_as(stored_dtype(run, kind)))


def write_weights(
    run: RunSpec,
    workspace: WorkspaceLayout,
    kind: WeightsKind,
    model_digest: str,
    folder: Path,
    journals: Path,
    progress: Callable[[int, int], None],
) -> dict[str, FileRecord]:
    """Write the weight files of one artifact into `folder`; `progress` gets (bytes done, in all).

    `model_digest` is what PREPARE reported of the 4-bit checkpoint. Records of finished files are kept in a folder of
    `journals`. Raises StageError: AdapterUntrained, ArtifactVerificationFailed, and QuantizationMismatch if the base is
    not the one that PREPARE reported or TRAIN trained on.
    """
    require_trained_base(workspace, run.spec_hash, model_digest)
    layout = stored_layout(run, workspace, kind)
    base_layout = read_base_layout(workspace)
    original = kind == "Merged" and merges_onto_original(run)
    source, expected = workspace.quantized_model, model_digest
    names, stored = base_layout.checkpoint_files, base_layout.text_names
    if original:
        source, expected = workspace.original, read_original(workspace.original, model_digest)
        names, stored = tuple(file.name for file in base_layout.files), None
    updates = read_updates(workspace.adapter, layout) if kind == "Merged" else None
    inputs = {
        "format": _FORMAT,
        "base": expected,
        "adapter": None if updates is None else updates.digest(),
        "original": original,
        "seed": run.training.seed if original else None,
        "files": [[file.name, [[t.name, t.dtype, t.shape] for t in file.tensors]] for file in layout.files],
    }
    journal = Journal(journals / folder.name, digest_of(inputs))
    journal.open(folder)
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="check"))
        digest = threads.submit(lambda: _digest(source, names))
        files = stack.enter_context(WeightFiles(source, names, stored))
        merged = MergeInputs(
            files,
            StoredBase(files) if original else QuantizedBase(files),
            updates or {},
            requantized=not original,
            seed=run.training.seed if original else None,
        )
        if updates is not None:
            shapes = {module: updates.shape(module) for module in updates}
            require_matching(updates, shapes, updates.replaced, layout)
            require_not_tied(updates.replaced, layout, _config(workspace, layout))
            if updates.replaced:
                adapter = stack.enter_context(WeightFiles(workspace.adapter, [_ADAPTER]))
                replaced = {name: adapter.find(entry.name) for name, entry in updates.replaced.items()}
                merged = MergeInputs(
                    merged.files, merged.base, merged.updates, merged.requantized, merged.seed, replaced
                )
        written = merge_weights(merged, layout, folder, progress, threads=available_cpus(), journal=journal)
        _require_digest(digest.result(), expected, source)
    check_weights(folder, layout)
    return written


def require_not_tied(
    replaced: Iterator[str] | dict[str, Any], layout: BaseLayout, config: dict[str, Any]
) -> None:
    """Refuse a replaced embedding or output head that the config ties to the other one.

    peft unties them in memory, but a server would tie them again. Raises StageError(ArtifactVerificationFailed).
    """
    shapes = {
        own: tensor.shape
        for file in layout.files
        for tensor in file.tensors
        if (own := layout.text_name(tensor.name)) is not None
    }
    tied = config.get("tie_word_embeddings", "lm_head.weight" not in shapes)
    vocabulary = config.get("vocab_size")
    for name in replaced:
        if tied and len(shapes[name]) == 2 and shapes[name][0] == vocabulary:
            raise StageError(
                Reason.ARTIFACT_VERIFICATION_FAILED,
                f"embedding and output head must stay equal, because the config ties them (`tie_word_embeddings`), found "
                f"an adapter that replaces {name} alone; train without it, or untie them in the base",
            )


def _config(workspace: WorkspaceLayout, layout: BaseLayout) -> dict[str, Any]:
    """Return the config of the model that was trained; the base's own may be that of a larger model."""
    folder = workspace.base if layout.text_names is None else workspace.quantized_model
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return document if isinstance(document, dict) else {}


def _digest(folder: Path, names: Sequence[str]) -> str:
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as threads:
        return weights_digest(folder, names, threads)


def _require_digest(found: str, expected: str, folder: Path) -> None:
    if found != expected:
        raise StageError(
            Reason.QUANTIZATION_MISMATCH,
            f"the weights in {folder.name}/ must have the digest that PREPARE reported, {expected}, found {found}; the "
            "files changed after PREPARE: run the job again",
        )
