"""The traced memory profile of a model, as progress and result of PREPARE report it (contract/result.schema.json)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from finetune_trainer.contract.part import Part
from finetune_trainer.contract.run_spec import Training
from finetune_trainer.contract.value import Value


class ModuleGroup(Part):
    """Modules of one kind: their number, their parameters, and the bytes that these take on the GPU."""

    modules: int
    parameters: int
    bytes: int


class SharedGroups(Part):
    """Frozen weights that a rank gathers if several share them, in bytes.

    They are those of the largest layer, with packed and with dequantized weights, of the embedding, and of the output head,
    which is 0 if it is tied. `layers` is the number of layers.
    """

    layers: int
    layer_bytes: int
    dequantized_layer_bytes: int
    embedding_bytes: int
    head_bytes: int


class MemoryTrace(Part):
    """What a run needs on a GPU, without the CUDA context, workspaces of libraries and fragmentation.

    `length` is that of the longest row in tokens, and `rank` that of the adapter. `optimizers` has the bytes of each
    optimizer's states. A row of `rungs` is one way to run a step, and has its rows of a pass, 1 if it recomputes
    activations, 1 if its weights are dequantized, and the peaks of the phases Load, Loss, Recompute, Optimizer and
    Evaluation in KiB, without the optimizer's states. A row of `lengths` has a shorter length in tokens and the same peaks,
    of the most frugal way with one row. `sharing` is None if ranks cannot share the weights.
    """

    length: int
    rank: int
    quantized: ModuleGroup
    adapted: ModuleGroup
    embeddings: ModuleGroup | None = None
    experts: ModuleGroup | None = None
    other: ModuleGroup | None = None
    optimizers: dict[str, int]
    rungs: tuple[tuple[int, int, int, int, int, int, int, int], ...]
    lengths: tuple[tuple[int, int, int, int, int, int], ...] = ()
    sharing: SharedGroups | None = None


class TraceRequest(Value):
    """The input of the command `trace`: `training` of a run spec, the model's config.json, and the longest row in tokens."""

    training: Training
    config: dict[str, Any]
    length: Annotated[int, Field(ge=2)]


class TraceAnswer(Part):
    """The output of the command `trace`: the trace, or why there is none."""

    trace: MemoryTrace | None = None
    problem: str | None = None
