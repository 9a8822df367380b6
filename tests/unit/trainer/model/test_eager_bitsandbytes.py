from __future__ import annotations

import subprocess
import sys

import pytest

# A process of its own, because this one has imported everything.
SCRIPT = """
import sys
from finetune_trainer.runner import load_stage
for stage in ("prepare", "merge"):
    load_stage(stage)
assert "bitsandbytes.backends.default.ops" in sys.modules
assert "torch._dynamo" not in sys.modules, "the start of a stage must not import torch's compiler"
import torch
assert torch.compile.__module__ == "torch"
load_stage("prepare")
"""


@pytest.mark.slow
def test_prepare_and_merge_start_without_torchs_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
