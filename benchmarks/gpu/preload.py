"""Imports that children share: the process that imports this is copied for each child.

With a GPU, only packages that do not touch it are imported. bitsandbytes asks the GPU for its kind, and a copy of a process
that has done so cannot use the GPU.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module

from benchmarks.gpu.children import DRY_VARIABLE

_HARMLESS = (
    "torch",
    "numpy",
    "pyarrow",
    "datasets",
    "tokenizers",
    "finetune_operator.sizing.memory.estimate",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
)
_OTHERS = ("tests.support.workspaces", "finetune_trainer.stages.train.stage", "trl.trainer.sft_trainer")

# torch then asks the driver's management library whether there is a GPU, which does not touch it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
for _name in (*_HARMLESS, *(_OTHERS if os.environ.get(DRY_VARIABLE) else ())):
    # A measurement that needs the package says that it is absent.
    with suppress(ImportError):
        import_module(_name)
