"""The fused kernels of a run: named in each checkpoint, so that a run continues as it began, and in the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from finetune_trainer.contract.train_result import KernelsResult

if TYPE_CHECKING:
    from finetune_trainer.model.fused.policy import KernelChoice

MEMBER = "FusedKernels"
"""The member of `stateful_callbacks` in trainer_state.json that names the kernels of a run."""
_LONGEST = 512


def begun_kernels(state: Any) -> tuple[str, ...]:
    """Return the kernels that a checkpoint's TrainerState names. Trainers before contract 1.8 had none."""
    found = (state.stateful_callbacks.get(MEMBER) or {}).get("used")
    return tuple(str(name) for name in found) if isinstance(found, list | tuple) else ()


class KernelCallback(TrainerCallback):
    """Notes the kernels before the first step, so that every checkpoint of the run names them."""

    def __init__(self, choice: KernelChoice) -> None:
        self._choice = choice

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """Note them in the state, which is that of the checkpoint if the run continues from one."""
        state.stateful_callbacks[MEMBER] = {"used": list(self._choice.used)}


def kernels_result(choice: KernelChoice) -> KernelsResult:
    """Return the kernels of a run for its result."""
    return KernelsResult(used=choice.used, reason=choice.reason[:_LONGEST])
