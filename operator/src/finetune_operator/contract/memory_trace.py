"""The traced memory profile of a base model, which PREPARE reports (contract/result.schema.json, `memoryTrace`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_operator.contract.bounded import Count, Document, Positive, Word

MAXIMUM_RUNGS = 48
MAXIMUM_LENGTHS = 8

Flag = Annotated[int, Field(ge=0, le=1, strict=True)]


class ModuleGroup(Document):
    """Modules of one kind: their number, their parameters, and the bytes that these take on the GPU."""

    modules: Count
    parameters: Count
    bytes: Count


class SharedGroups(Document):
    """Frozen weights that a rank gathers if several share them, in bytes.

    They are those of the largest layer, with packed and with dequantized weights, of the embedding, and of the output head,
    which is 0 if it is tied. `layers` is the number of layers.
    """

    layers: Positive
    layer_bytes: Count
    dequantized_layer_bytes: Count
    embedding_bytes: Count
    head_bytes: Count


class MemoryTrace(Document):
    """What a run of the model takes on a GPU, but for the CUDA context, workspaces of libraries and fragmentation.

    `length` is that of the rows in tokens, and `rank` that of the adapter. `optimizers` has the bytes of each optimizer's
    states. A row of `rungs` is one way to run a step: rows of a pass, 1 if it recomputes activations, 1 if its weights are
    dequantized, and the peaks of Load, Loss, Recompute, Optimizer and Evaluation in KiB, without the optimizer's states. A
    row of `lengths` has a shorter length and the same peaks, with one row, recomputed activations and 4-bit weights.
    `sharing` is None if ranks cannot share the weights, or if the trainer is older than contract 1.12.
    """

    length: Positive
    rank: Positive
    quantized: ModuleGroup
    adapted: ModuleGroup
    embeddings: ModuleGroup | None = None
    experts: ModuleGroup | None = None
    other: ModuleGroup | None = None
    optimizers: Annotated[dict[Word, Count], Field(min_length=1, max_length=4)]
    rungs: Annotated[
        tuple[tuple[Positive, Flag, Flag, Count, Count, Count, Count, Count], ...],
        Field(min_length=1, max_length=MAXIMUM_RUNGS),
    ]
    lengths: Annotated[
        tuple[tuple[Positive, Count, Count, Count, Count, Count], ...], Field(max_length=MAXIMUM_LENGTHS)
    ] = ()
    sharing: SharedGroups | None = None

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        groups = (self.quantized, self.embeddings, self.experts, self.other)
        return sum(group.parameters for group in groups if group is not None)
