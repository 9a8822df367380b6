"""Triton's kernels: their values and gradients in Triton's interpreter, and their compilation for GPUs without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetune_trainer.model.fused.policy import FAMILIES
from finetune_trainer.model.fused.self_test import failures
from finetune_trainer.model.fused.triton_kernels import TritonKernels

from tests.support.kernel_sets import chosen, frozen
from tests.support.repository import ROOT

_INTERPRETED = """
import json
import torch
from finetune_trainer.model.fused.layers import normed
from finetune_trainer.model.fused.policy import FAMILIES
from finetune_trainer.model.fused.self_test import failures
from finetune_trainer.model.fused.triton_kernels import TritonKernels
from tests.support.kernel_sets import chosen, frozen



def kept(compute, *inputs):
    # The bytes that the backward pass keeps, each storage once.
    storages = {}

    def pack(value):
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        outputs = compute(*(value.requires_grad_() for value in inputs))
    assert outputs is not None
    return sum(storages.values())


model, kernels = frozen("llama", torch.bfloat16), TritonKernels()
norm, mlp = model.model.norm, model.model.layers[0].mlp
x, y = torch.randn(64, 32).bfloat16(), torch.randn(64, 32).bfloat16()
print(json.dumps([
    [kept(norm, x), kept(lambda x: normed(kernels, norm, x, "RoundFirst"), x)],
    [kept(lambda x, y: mlp.act_fn(x) * y, x, y), kept(kernels.gate, x, y)],
]))
# The interpreter cuts values off to bf16 instead of rounding them, so float16 shows where a kernel rounds.
print(json.dumps({
    f"{family} {dtype}": failures(frozen(family, dtype), TritonKernels(), chosen(family), FAMILIES[family].norm)
    for family in ("llama", "qwen3", "gemma2", "olmo2", "granite")
    for dtype in (torch.float32, torch.float16)
}))
"""


@pytest.mark.slow
def test_values_gradients_and_memory_are_those_of_the_layers_at_most(tmp_path: Path) -> None:
    """The interpreter runs the same code on a CPU. It must be chosen before the kernels are imported.

    A backward pass keeps no more than that of the reference.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", _INTERPRETED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert len(found) == 10
    assert found == {case: {} for case in found}
    for reference, kernel in json.loads(ended.stdout.splitlines()[-2]):
        # The estimate of the memory is that of the reference.
        assert kernel <= reference


_COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from finetune_trainer.model.fused import triton_kernels as kernels

POINTERS = {"inputs", "weights", "outputs", "outer", "gradients", "cosines", "sines", "gates", "ups"}
POINTERS |= {"gate_gradients", "up_gradients"}
CHOSEN = {
    "_norm_forward": {"added": 0.0, "rounds": True, "block": 4096},
    "_norm_backward": {"added": 1.0, "rounds": False, "block": 4096},
    "_rotate": {"half": 64, "backward": True, "block": 64},
    "_gate_forward": {"block": 1024},
    "_gate_backward": {"block": 1024},
}


def kind(name, chosen):
    if name in chosen:
        return "constexpr"
    if name == "factors":
        return "*fp32"
    return "*bf16" if name in POINTERS else "fp32" if name == "epsilon" else "i32"


for capability in CAPABILITIES:
    for name, chosen in CHOSEN.items():
        kernel = getattr(kernels, name)
        signature = {argument: kind(argument, chosen) for argument in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=chosen)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
        assert made.asm["cubin"], (name, capability)
        print(name, capability)
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles_for_a_gpu_that_is_not_there(tmp_path: Path, capability: int) -> None:
    script = tmp_path / "compile_kernels.py"
    script.write_text(_COMPILED.replace("CAPABILITIES", f"({capability},)"), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 5


def test_a_row_that_no_kernel_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="must have at most 65536 values, found 70000"):
        TritonKernels().rms_norm(torch.ones(1, 70000), torch.ones(70000), 1e-6, added=0.0, rounds=True)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_gpu_computes_as_the_layers(family: str) -> None:
    model = frozen(family, torch.bfloat16).to("cuda")
    assert failures(model, TritonKernels(), chosen(family), FAMILIES[family].norm) == {}
