"""Memory of the loss: logits, hidden states and their gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.terms import MemoryItem

if TYPE_CHECKING:
    from finetune_operator.sizing.memory.shape import ModelShape
    from finetune_operator.sizing.memory.stack import StackProfile
    from finetune_operator.sizing.memory.training_plan import TrainingPlan

# TRL's fused head (trl/kernels/chunked_logprob.py) computes tiles of these numbers of positions and entries.
_TILE_TOKENS = 4096
_TILE_VOCABULARY = 32768
# Scoring all positions at once: logits in 16 bits, in float32, and their logarithms. It keeps no gradient.
_SCORED = 10


def loss_items(shape: ModelShape, plan: TrainingPlan, stack: StackProfile) -> tuple[MemoryItem, ...]:
    """Return the items that live while the loss and its gradient are computed."""
    tokens, hidden, width = plan.tokens, shape.hidden, stack.residual_width
    logits, formula = _logits(shape, plan, stack)
    # The last norm saves its input in float32, twice that without its mean, or its input itself.
    saved = {"Layer": width, "Centered": 8}.get(shape.norm, 4)
    return (
        MemoryItem("logits", logits, f"{formula} ({stack.loss})"),
        MemoryItem(
            "hidden states",
            (saved + width) * hidden * tokens,
            f"{hidden} x {tokens} tokens x {saved + width} B",
        ),
        MemoryItem(
            "gradient of hidden states",
            _gradient(stack, width) * hidden * tokens,
            f"{hidden} x {tokens} tokens",
        ),
    )


def _logits(shape: ModelShape, plan: TrainingPlan, stack: StackProfile) -> tuple[int, str]:
    vocabulary, tokens = shape.vocabulary, plan.tokens
    capped = shape.final_softcap
    match stack.loss:
        case "SupervisedChunks":
            # The last token of a row predicts nothing.
            supervised = plan.micro_batch_size * max(1, plan.sequence_length - 1)
            positions = min(supervised, max(1, stack.loss_chunk_logits // vocabulary))
            # Logits in 16 bits and in float32. A cap keeps the 16-bit ones for its slope, which is widened too. The
            # selected hidden states come on top.
            each = 10 if capped else 6
            size = positions * (each * vocabulary + 2 * shape.hidden)
            return size, f"{positions} positions x {vocabulary} x {each} B"
        case "TokenChunks":
            positions, each = min(tokens, stack.loss_chunk_tokens), 18 if capped else 12
        case "Liger":
            # Liger's fused linear cross entropy: the positions of a chunk are a power of two, and the chunk's logits are
            # about as large as the hidden states.
            share = -(-tokens // -(-vocabulary // shape.hidden))
            positions, each = min(tokens, 1 << (share - 1).bit_length()), 8
        case "CutCrossEntropy":
            positions, each = 0, 0
        case "FusedTile":
            rows, columns = min(tokens, _TILE_TOKENS), min(vocabulary, _TILE_VOCABULARY)
            return 2 * rows * columns, f"{rows} positions x {columns} x 2 B"
        case _:
            positions, each = tokens, _full_width(stack, capped=capped)
    return positions * vocabulary * each, f"{positions} positions x {vocabulary} x {each} B"


def _full_width(stack: StackProfile, *, capped: bool) -> int:
    """Return the bytes for each logit of a loss over all positions at once.

    The shifted loss of transformers 4 takes 12 to 14 in public runs: the caller keeps the 16-bit logits.
    """
    match stack.loss:
        case "FullLogitsShifted":
            return 20 if capped else 14
        case "FullLogitsBf16":
            return 8 if capped else 6
        case _:
            return 18 if capped else 12


def _gradient(stack: StackProfile, width: int) -> int:
    """Return the bytes for each element of the hidden states' gradient while logits live."""
    match stack.loss:
        case "SupervisedChunks" | "Liger" | "CutCrossEntropy" | "TokenChunks":
            return width
        case "FusedTile":
            return 4 + width
        case _:
            return 0


def scoring_items(shape: ModelShape, plan: TrainingPlan, stack: StackProfile) -> tuple[MemoryItem, ...]:
    """Return the items of scoring a batch without gradients: hidden states and the logits of some positions."""
    tokens = plan.sequence_length * (stack.evaluation_batch or plan.micro_batch_size)
    width = stack.residual_width
    hidden = MemoryItem(
        "hidden states", width * shape.hidden * tokens, f"{shape.hidden} x {tokens} tokens x {width} B"
    )
    if stack.full_logits:
        each = min(_SCORED, _full_width(stack, capped=shape.final_softcap))
        return hidden, MemoryItem(
            "logits", tokens * shape.vocabulary * each, f"{tokens} x {shape.vocabulary} x {each} B"
        )
    logits, formula = _logits(shape, plan, stack)
    return hidden, MemoryItem("logits", logits, formula)
