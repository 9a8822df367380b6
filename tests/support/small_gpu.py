"""A device that is too small: torch's operators raise its out-of-memory error, as a full GPU's allocator does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.fused.device import device_kernels
from finetune_trainer.model.load import load_quantized
from finetune_trainer.stages.train import probe, stage
from finetune_trainer.stages.train.settings import optimizer_name, sft_config
from finetune_trainer.telemetry.reporter import NullReporter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.training_args import OptimizerNames

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from finetune_trainer.contract.run_spec import RunSpec

LONGEST = 28
"""Tokens of the longest row of `workspaces.prepare`."""
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Watch(NullReporter):
    """Remembers what a stage reports last, and all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.activity = ""
        self.step = 0
        self.seen: list[tuple[str, int]] = []

    def update(self, activity: str, step: int, total: int | None, **more: Any) -> None:
        super().update(activity, step, total, **more)
        self.activity, self.step = activity, step
        if not self.seen or self.seen[-1] != (activity, step):
            self.seen.append((activity, step))


class SmallGpu(TorchDispatchMode):
    """Raises at each new tensor of activations, (rows, length, width), that `refuses`."""

    def __init__(self, refuses: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotations here
        self.refusals = 0
        self._refuses = refuses

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if (
            isinstance(made, torch.Tensor)
            and made.ndim == 3
            and made.is_floating_point()
            and self._refuses(made)
        ):
            self.refusals += 1
            raise torch.OutOfMemoryError(MESSAGE)
        return made


def full_in(watch: Watch, activity: str, *, rows: int, after_step: int = 0) -> SmallGpu:
    """Return a device that holds fewer than `rows` rows of a forward pass in `activity`, once `after_step` steps are done.

    The rows are those of `workspaces.prepare`, whose lengths differ little, so their tokens count, packed or padded.
    """
    most = (rows - 1) * LONGEST
    return SmallGpu(
        lambda made: (
            made.shape[0] * made.shape[1] > most and watch.activity == activity and watch.step >= after_step
        )
    )


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs with the device "cuda" train on the CPU, with the optimizers of a GPU, which bitsandbytes has there, too."""

    def on_cpu(run: RunSpec, *arguments: Any) -> Any:
        config = sft_config(run.model_copy(update={"device": "cpu"}), *arguments)
        config.optim = OptimizerNames(optimizer_name(run))
        return config

    monkeypatch.setattr(stage, "sft_config", on_cpu)
    monkeypatch.setattr(probe, "sft_config", on_cpu)
    monkeypatch.setattr(stage, "load_quantized", lambda path, _device: load_quantized(path, "cpu"))
    monkeypatch.setattr(
        stage, "attention_of", lambda config, _device, *, packed: attention_of(config, "cpu", packed=packed)
    )
    monkeypatch.setattr(stage, "device_kernels", lambda _device: device_kernels("cpu"))
    monkeypatch.setattr(stage, "_device_name", lambda _device: "pretended")
