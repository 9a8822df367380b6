"""Chooses the learning rate of a job that gives none, from the model's width, the batch and the number of steps.

The rule is published: Schulman et al., "LoRA Without Regret", Thinking Machines Lab, 2025 (thinkingmachines.ai/blog/lora),
with the constants of its companion, the Tinker cookbook. docs/training.md argues each factor.
"""

from __future__ import annotations

import math
from typing import Protocol

from finetune_operator.api.plan import DEFAULT_EPOCHS, LearningRate
from finetune_operator.api.spec import Training

BASE_RATE = 5e-5
"""The rate of full fine-tuning at the width of `WIDTH`."""
WIDTH = 2000
EXPONENT = 0.781
"""Fitted for Llama models, and used for each family without a fit of its own."""
FITTED_EXPONENTS = {"qwen": 0.0775}
"""By the beginning of the family's name."""
SHORT_RUN = (100, 15.0)
LONG_RUN = (1000, 10.0)
"""Steps, and the multiple of the full fine-tuning rate that is best for LoRA: 15 in short runs, and 10 in long ones.

Between the two the multiple follows the logarithm of the steps.
"""
BATCH = 128
"""The effective batch of the published sweeps. The rate follows the square root of the batch."""
LARGEST_BATCH = 512
"""LoRA tolerates large batches less than full fine-tuning, so the rate grows no further."""
ALPHA = 32
"""The published `alpha`, with the factor alpha / rank: with it, the best rate does not depend on the rank."""
RANK_STABILIZED_ALPHA = 4
"""alpha / sqrt(rank) is 4 times alpha / rank at the default rank of 16."""
LOWEST, HIGHEST = 1e-5, 1e-3
"""Bounds of a chosen rate. No model of the published sweeps had its best rate above `HIGHEST`."""
WARN_ABOVE = 0.003
PROVISIONAL = LearningRate(
    0.0002, "provisional: the rate is chosen when PREPARE has reported the model and the rows"
)
"""For PREPARE, which does not train."""


class Wide(Protocol):
    """What the rule reads of a model."""

    @property
    def family(self) -> str:
        """The model type."""

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""


def choose_learning_rate(training: Training, shape: Wide | None, examples: int | None) -> LearningRate:
    """Return the rate of the spec, or the published rule's rate for `shape`, rounded to two digits.

    `examples` is the number of training examples. If it is not known, the number of steps may be unknown, too. Then the
    run counts as a long one, which has the lower rate.
    """
    if training.learning_rate is not None:
        return LearningRate(training.learning_rate, None)
    if shape is None:
        return PROVISIONAL
    steps = optimizer_steps(training, examples)
    alpha = _standard_alpha(training)
    rate = recommended_rate(shape.family, shape.hidden, training.effective_batch_size, alpha, steps)
    bounded = min(max(rate, LOWEST), HIGHEST)
    return LearningRate(float(f"{bounded:.1e}"), _reason(training, shape, steps, rate, alpha))


def recommended_rate(family: str, hidden: int, batch: int, alpha: float, steps: int | None) -> float:
    """Return the rule's rate without bounds. It does not depend on the rank.

    `hidden` is the model's width, `batch` the examples of an optimizer step, and `alpha` that of a factor alpha / rank.
    A larger alpha multiplies the update of both matrices, as a larger rate does. Exact compensation divides the rate of
    the matrix that starts at zero by it and leaves that of the other one. Both have one rate here, so it is divided by
    the square root, the middle of the two.
    """
    width: float = (WIDTH / hidden) ** exponent(family)
    examples = math.sqrt(min(batch, LARGEST_BATCH) / BATCH)
    return BASE_RATE * lora_multiple(steps) * width * examples * math.sqrt(ALPHA / alpha)


def exponent(family: str) -> float:
    """Return how much the best rate falls with the width, for a family."""
    return next((value for prefix, value in FITTED_EXPONENTS.items() if family.startswith(prefix)), EXPONENT)


def lora_multiple(steps: int | None) -> float:
    """Return the best rate of LoRA as a multiple of that of full fine-tuning; None steps count as a long run."""
    (short, high), (long, low) = SHORT_RUN, LONG_RUN
    if steps is None:
        return low
    share = math.log(min(max(steps, short), long) / short) / math.log(long / short)
    return high + (low - high) * share


def optimizer_steps(training: Training, examples: int | None) -> int | None:
    """Return the optimizer steps of the whole run; None if they depend on examples that are not known yet."""
    if training.maximum_steps is not None:
        return training.maximum_steps
    if examples is None:
        return None
    epochs = DEFAULT_EPOCHS if training.epochs is None else training.epochs
    return max(1, math.ceil(epochs * math.ceil(examples / training.effective_batch_size)))


def warnings(training: Training) -> tuple[str, ...]:
    """Return what a person should know about the learning rate before the job runs."""
    rate = training.learning_rate
    if rate is None or rate <= WARN_ABOVE:
        return ()
    advice = f"omit it to let the operator choose, or lower it to {HIGHEST:g} or less"
    return (
        f"training.learningRate {rate:g} is above {WARN_ABOVE:g}: adapters often diverge at such rates; {advice}",
    )


def _standard_alpha(training: Training) -> float:
    """Return the alpha that has the same effect with the factor alpha / rank, at the default rank."""
    lora = training.lora
    return lora.alpha * (RANK_STABILIZED_ALPHA if lora.variant == "RankStabilized" else 1)


def _reason(training: Training, shape: Wide, steps: int | None, rate: float, alpha: float) -> str:
    over = "unknown number of" if steps is None else f"{steps:,}"
    factors = [
        f"{BASE_RATE:g} x {lora_multiple(steps):.3g} (LoRA, {over} steps)",
        f"({WIDTH} / {shape.hidden})^{exponent(shape.family):g} (hidden size)",
        f"sqrt({min(training.effective_batch_size, LARGEST_BATCH)} / {BATCH}) (effective batch)",
    ]
    if alpha != ALPHA:
        factors.append(f"sqrt({ALPHA} / {alpha:g}) (alpha)")
    bound = ""
    if not LOWEST <= rate <= HIGHEST:
        limit = f"at least {LOWEST:g}" if rate < LOWEST else f"at most {HIGHEST:g}"
        bound = f" = {rate:.2g}, but {limit}"
    return f"{' x '.join(factors)}{bound}; rule of LoRA Without Regret (2025), for every rank; see docs/training.md"
