"""The bytes that MERGE writes to the destination, known before it writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.model.adapter_targets import trainable_parameters
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.workspace.destination import folder_bytes

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout

_HALF_BYTES = 2
_FULL_BYTES = 4


def least_artifact_bytes(run: RunSpec, parameters: int) -> int:
    """Return the bytes of the weights in 16 bits, for each artifact that has them: the merged model, the base as trained.

    Before any weight is downloaded, only the number of `parameters` is known.
    """
    return _HALF_BYTES * parameters * sum(kind != "Adapter" for kind in run.output.artifacts)


def artifact_bytes(run: RunSpec, workspace: WorkspaceLayout) -> int:
    """Return the bytes of all artifacts: weights, small files, adapter and report.

    The adapter counts with its own files once TRAIN has saved it, and with its parameters before. Raises
    StageError(QuantizationMismatch) if PREPARE has not finished.
    """
    # An adapter gets the tokenizer's files, which are nearly all of the small ones.
    total = folder_bytes(workspace.report) + len(run.output.artifacts) * folder_bytes(workspace.base)
    if "Merged" in run.output.artifacts:
        total += read_base_layout(workspace).stored_as(run.output.dtype).bytes
    if "BaseAsTrained" in run.output.artifacts:
        total += read_base_layout(workspace).stored_as("BFloat16").bytes
    if "Adapter" in run.output.artifacts:
        total += folder_bytes(workspace.adapter) or _expected_adapter_bytes(run, workspace)
    return total


def _expected_adapter_bytes(run: RunSpec, workspace: WorkspaceLayout) -> int:
    return _FULL_BYTES * trainable_parameters(read_base_layout(workspace), run.training.lora)
