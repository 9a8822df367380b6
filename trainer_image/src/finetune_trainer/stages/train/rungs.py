"""The rungs of a run: the planned one, and the more frugal ones that follow it when the GPU is out of memory.

All rungs of a run have the same effective batch. The loss of a step is divided by the learned tokens of the whole step,
so a rung changes the rounding of a step and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.run_spec import DEFAULT_OPTIMIZER, Rung
from finetune_trainer.contract.train_result import FailedRungResult, RungResult
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.contract.run_spec import RunSpec

_GIB = 1 << 30


def rung_of(run: RunSpec) -> Rung:
    """Return the rung that the run spec names as its own."""
    training = run.training
    return _on_device(
        run,
        Rung(
            micro_batch_size=training.micro_batch_size,
            gradient_checkpointing=training.gradient_checkpointing,
            optimizer=training.optimizer,
            weights=training.weights,
        ),
    )


def runs_by_rung(run: RunSpec) -> tuple[RunSpec, ...]:
    """Return the run spec of each rung in the order of the ladder, each rung once and without a ladder."""
    rungs = dict.fromkeys([rung_of(run), *(_on_device(run, rung) for rung in run.training.ladder)])
    return tuple(
        run.model_copy(
            update={
                "training": run.training.model_copy(
                    update={
                        "micro_batch_size": rung.micro_batch_size,
                        "gradient_checkpointing": rung.gradient_checkpointing,
                        "optimizer": rung.optimizer,
                        "weights": rung.weights,
                        "ladder": (),
                    }
                )
            }
        )
        for rung in rungs
    )


def _on_device(run: RunSpec, rung: Rung) -> Rung:
    """Return the rung with the optimizer that the run's device takes for it."""
    optimizer = None if run.device == "cpu" else rung.optimizer or DEFAULT_OPTIMIZER
    return rung.model_copy(update={"optimizer": optimizer})


def rung_result(rung: Rung) -> RungResult:
    """Return the rung as a member of the result."""
    return RungResult(**rung_members(rung))


def rung_members(rung: Rung) -> dict[str, Any]:
    """Return the members of a rung that are not their defaults, for a `RungResult`."""
    return rung.model_dump(exclude_defaults=True)


def describe_rung(rung: Rung | RungResult) -> str:
    """Describe a rung in a few words."""
    others = [] if rung.optimizer is None else [rung.optimizer]
    others += ["dequantized weights"] if rung.weights == "Dequantized" else []
    chosen = f"with {' and '.join(others)}, " if others else ""
    checkpointing = "with" if rung.gradient_checkpointing else "without"
    return f"micro-batches of {rung.micro_batch_size} {chosen}{checkpointing} gradient checkpointing"


def describe_failure(failed: FailedRungResult) -> str:
    """Describe where a rung did not fit, and the measured peaks."""
    step = "" if failed.step is None else f", step {failed.step}"
    if failed.allocated_bytes is None or failed.reserved_bytes is None:
        peaks = "not measured"
    else:
        peaks = f"tensors {failed.allocated_bytes / _GIB:.2f} GiB, allocator {failed.reserved_bytes / _GIB:.2f} GiB"
    return f"{describe_rung(failed)} ({failed.activity}{step}: {peaks})"


def ladder_used_up(
    failed: Sequence[FailedRungResult], maximum_length: int, usable_bytes: int | None, cause: str
) -> StageError:
    """Return the failure of a run none of whose rungs fits: what each of them took, and what was raised last."""
    size = "" if usable_bytes is None else f" of {usable_bytes / _GIB:.2f} GiB"
    tried = "; ".join(describe_failure(each) for each in failed)
    return StageError(
        Reason.GPU_OUT_OF_MEMORY,
        f"the GPU{size} must hold a step with rows of up to {maximum_length} tokens, but no plan of the ladder "
        "fits. Lower training.microBatchSize or training.maximumLength, or use a larger GPU. Peaks: "
        f"{tried}. Last error: {cause}",
    )


def smaller_batches(tokens: int, longest: int) -> tuple[int, ...]:
    """Return the tokens of an evaluation's batches to try: `tokens`, then halves of it down to the `longest` row."""
    sizes = [tokens]
    while sizes[-1] > longest:
        sizes.append(max(longest, sizes[-1] // 2))
    return tuple(sizes)
