"""Loads the adapted model of a rank that has only its part of the frozen weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import set_seed

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.attention import allow_kernels, attention_of
from finetune_trainer.model.load import check_quantized
from finetune_trainer.model.output_head import prove_head
from finetune_trainer.model.sharding.load import load_shell
from finetune_trainer.stages.train.adapter import add_adapter

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.model.layout import BaseLayout
    from finetune_trainer.stages.train.ranks.group import Ranks
    from finetune_trainer.workspace.layout import WorkspaceLayout


def load_sharded(run: RunSpec, workspace: WorkspaceLayout, layout: BaseLayout, ranks: Ranks) -> Any:
    """Return the model with its new adapter, which is whole and the same on every rank.

    Raises StageError: UnsupportedModel if the model or the adapter needs whole weights, or QuantizationMismatch.
    """
    training = run.training
    if training.lora.variant == "DoRA":
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            "parallelism FullyShard needs an adapter without the norms of whole weights, found variant DoRA; use variant "
            "Standard or RankStabilized, or parallelism DataParallel",
        )
    shell = load_shell(workspace.quantized_model, run.device, dequantized=training.weights == "Dequantized")
    model = shell.model
    if training.weights == "Quantized":
        check_quantized(model, layout)
    allow_kernels(attention_of(model.config, run.device, packed=False))
    set_seed(training.seed)
    adapted = add_adapter(model, training.lora, layout.adaptable)
    shell.fill(adapted, ranks.mesh(run.device))
    prove_head(adapted)
    return adapted
