"""What several GPUs exchange in a run, and how long that takes: computed from bytes, and not measured.

GPUs with a replica add the gradients of the adapter once in a step (ADR 0074). GPUs that share the frozen weights also
gather these: all layers forward and again backward, and embedding and output head forward (ADR 0075). Nothing of them is
scattered back, because they have no gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_operator.sizing.cost.work import PROBE_STEPS, QUANTIZED_BYTES, Sizes, Span, Work
from finetune_operator.sizing.memory.training_plan import TrainingPlan

WITHIN_NODE = Span(3e11, 2e10, 4e9)
"""Bytes that each GPU of a node receives in a second, without a stated speed: NVLink, PCIe 4.0, and PCIe through the host.

NVLink of an H100 moves 450 GB/s in each direction, of which collectives reach about two thirds. PCIe 4.0 with 16 lanes moves
32 GB/s. The operator does not know which of them connects the GPUs of a node.
"""
BETWEEN_NODES = Span(4e10, 2.5e9, 1e9)
"""The same between nodes: 400 Gb/s with RDMA, 25 Gb/s, and 10 Gb/s that others use, too."""
STATED = Span(1.25, 1.0, 0.5)
"""The bounds of a speed that the administrator states, as multiples of it."""
GRADIENT_BYTES = 4
"""Of each trained value: gradients are in float32 (ADR 0031)."""
_Gigabytes = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Links(BaseModel):
    """The chart's `cost.links`: gigabytes that a GPU receives from others in a second. None stands for a wide guess."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    within_node: _Gigabytes | None = None
    between_nodes: _Gigabytes | None = None

    def speed(self, nodes: int) -> Span:
        """The bytes in a second for GPUs on so many nodes, from the fastest to the slowest."""
        stated = self.within_node if nodes == 1 else self.between_nodes
        if stated is None:
            return WITHIN_NODE if nodes == 1 else BETWEEN_NODES
        return Span(*(stated * 1e9 * part for part in (STATED.low, STATED.expected, STATED.high)))

    def reason(self, nodes: int) -> str:
        """Say where the time of the exchange comes from."""
        stated = self.within_node if nodes == 1 else self.between_nodes
        place = "in a node" if nodes == 1 else "between nodes"
        source = "a wide guess" if stated is None else "stated in cost.links"
        speed = self.speed(nodes).expected / 1e9
        return f"the exchange of the GPUs is computed and not measured: {speed:g} GB/s {place}, {source}"


GUESSED_LINKS = Links()


@dataclass(frozen=True)
class Exchange:
    """Bytes that one GPU receives in each part of a run."""

    training: float
    others: float
    """While it probes, evaluates and answers."""


def exchange_of(work: Work, sizes: Sizes, plan: TrainingPlan, adapter: int) -> Exchange:
    """Count the bytes that each of the GPUs of `plan` receives. `adapter` is the number of trained values."""
    remote = (plan.ranks - 1) / plan.ranks
    # A sum over a ring moves all bytes twice.
    gradients = 2 * GRADIENT_BYTES * adapter
    if plan.parallelism == "DataParallel":
        return Exchange(remote * gradients * work.steps, remote * gradients * PROBE_STEPS)
    each = 2.0 if plan.weights == "Dequantized" else QUANTIZED_BYTES
    layers, ends = each * sizes.linear_weights, 2.0 * sizes.embedding_weights
    forward, both = layers + ends, 2 * layers + ends
    judged = work.evaluation.count + work.selection.count
    return Exchange(
        training=remote * (gradients * work.steps + both * work.training.count),
        others=remote * (PROBE_STEPS * (gradients + both) + forward * judged),
    )


def answer_bytes(work: Work, sizes: Sizes, plan: TrainingPlan) -> float:
    """Bytes that each GPU receives while a model with shared weights answers: the weights for each token."""
    if plan.parallelism == "DataParallel":
        return 0.0
    remote = (plan.ranks - 1) / plan.ranks
    return (
        remote
        * work.generation.count
        * (QUANTIZED_BYTES * sizes.linear_weights + 2.0 * sizes.embedding_weights)
    )
