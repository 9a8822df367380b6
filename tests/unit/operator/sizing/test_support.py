from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.sizing.gpus.gpu import Gpu, Version
from finetune_operator.sizing.gpus.products import find_product
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackProfile
from finetune_operator.sizing.support import unsupported

STACK = StackProfile(name="stack", minimum_compute_capability=(8, 0), cuda_version=(13, 2))


def gpu(name: str, driver: Version | None = None) -> Gpu:
    found = find_product(name)
    assert found is not None
    return replace(found, driver_cuda=driver)


@pytest.mark.parametrize("name", ["L4", "A10G", "A100 80GB", "H100", "B200", "RTX 3090", "RTX PRO 6000"])
def test_every_gpu_with_native_bfloat16_runs_the_image(name: str) -> None:
    assert unsupported(gpu(name), STACK) is None


@pytest.mark.parametrize(("name", "capability"), [("T4", "7.5"), ("V100 32GB", "7.0"), ("P100 16GB", "6.0")])
def test_an_older_gpu_is_rejected_by_its_compute_capability(name: str, capability: str) -> None:
    message = unsupported(gpu(name), STACK)
    assert message is not None
    assert "8.0" in message
    assert capability in message


@pytest.mark.parametrize("driver", [(13, 0), (13, 2), (13, 5), (14, 0)])
def test_a_driver_runs_all_of_its_major_version_and_what_is_older(driver: Version) -> None:
    assert unsupported(gpu("L4", driver), STACK) is None


@pytest.mark.parametrize("driver", [(12, 9), (11, 8)])
def test_a_driver_of_an_earlier_major_version_is_rejected(driver: Version) -> None:
    message = unsupported(gpu("L4", driver), STACK)
    assert message is not None
    assert "CUDA 13.2" in message
    assert f"CUDA {driver[0]}.{driver[1]}" in message


def test_an_image_for_one_vendor_does_not_run_on_another() -> None:
    message = unsupported(gpu("MI300X"), STACK)
    assert message is not None
    assert "NVIDIA" in message
    assert unsupported(gpu("MI300X"), replace(STACK, vendor="Amd")) is None


def test_unknown_facts_never_exclude_a_gpu() -> None:
    assert unsupported(Gpu("GPU", "Unknown", None), STACK) is None
    assert unsupported(Gpu("GPU", "Nvidia", None), STACK) is None


def test_the_default_stack_is_the_cuda_of_the_trainers_image() -> None:
    """The image of trainer_image/Dockerfile has the PyTorch of this environment."""
    torch = pytest.importorskip("torch")
    major, _, minor = torch.version.cuda.partition(".")
    assert DEFAULT_STACK.cuda_version == (int(major), int(minor))
