"""The digest of the 4-bit checkpoint that TRAIN trained on, so that no adapter is merged into another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.layout import read_marker, write_marker

if TYPE_CHECKING:
    from finetune_trainer.workspace.layout import WorkspaceLayout

_STEP = "trained-base"


def record_trained_base(layout: WorkspaceLayout, spec_hash: str) -> None:
    """Record, before training begins, the digest that PREPARE reported of the checkpoint.

    Raises StageError as `require_trained_base` does, for example if a checkpoint of TRAIN belongs to another base. A
    workspace without PREPARE's marker records nothing.
    """
    digest = _prepared_digest(layout, spec_hash)
    if digest is not None:
        require_trained_base(layout, spec_hash, digest)
        write_marker(layout, _STEP, spec_hash, {"digest": digest})


def require_trained_base(layout: WorkspaceLayout, spec_hash: str, digest: str) -> None:
    """Raise StageError(QuantizationMismatch) if TRAIN recorded another digest; an older TRAIN recorded none."""
    recorded = read_marker(layout, _STEP, spec_hash)
    if recorded is not None and recorded.get("digest") != digest:
        raise StageError(
            Reason.QUANTIZATION_MISMATCH,
            f"the base must be the one that was trained on, {recorded.get('digest')}, found {digest} from a later PREPARE; "
            "create the job again with a fixed revision of the model",
        )


def _prepared_digest(layout: WorkspaceLayout, spec_hash: str) -> str | None:
    prepared = read_marker(layout, "prepare", spec_hash)
    model = prepared.get("model") if prepared is not None else None
    digest = model.get("digest") if isinstance(model, dict) else None
    return digest if isinstance(digest, str) else None
