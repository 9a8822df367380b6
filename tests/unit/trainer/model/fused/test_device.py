"""The kernels that a process has: none on a CPU, and a reason where they cannot be loaded."""

from __future__ import annotations

import sys

import pytest
import torch
from finetune_trainer.model.fused.device import device_kernels

_MODULE = "finetune_trainer.model.fused.triton_kernels"


def test_a_cpu_has_no_kernels_and_does_not_load_any() -> None:
    sys.modules.pop(_MODULE, None)
    found = device_kernels("cpu")
    assert (found.device, found.kernels, found.capability) == ("cpu", None, None)
    assert _MODULE not in sys.modules


def test_a_gpu_has_the_kernels_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    found = device_kernels("cuda")
    assert type(found.kernels).__name__ == "TritonKernels"
    assert (found.missing, found.capability) == (None, (9, 0))


def test_without_triton_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setitem(sys.modules, _MODULE, None)
    found = device_kernels("cuda")
    assert found.kernels is None
    assert "Triton cannot be used: ModuleNotFoundError" in (found.missing or "")
