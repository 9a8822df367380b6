"""Traces the memory of a model with the trainer, which runs as a process: PREPARE traces it in the same way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.contract.run_spec import training_member
from finetune_operator.sizing.planning import make_plan
from pydantic import ValidationError

from finetune_cli.errors import UsageError
from finetune_cli.trainer import REMEDY, trainer_is_installed

SECONDS = 150.0
UNTRACED = (
    "the size of such a model is known when PREPARE has traced it, before it fetches weights; pass --trace where the "
    "trainer is installed to trace it now"
)


def trace_model(
    spec: FineTuneJobSpec, config: Mapping[str, Any], length: int, seconds: float = SECONDS
) -> MemoryTrace:
    """Return the traced memory of a job with rows of `length` tokens.

    Raises UsageError if the trainer is not installed, or if it cannot trace the model.
    """
    if not trainer_is_installed():
        raise UsageError(f"--trace needs the trainer: {REMEDY}")
    training = training_member(spec.training, make_plan(spec, "cuda"), "cuda")
    request = {"training": training, "config": dict(config), "length": length}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "finetune_trainer", "trace"],
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            text=True,
            timeout=seconds,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"the trace must take at most {seconds:g} s, and did not end") from error
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1] if lines else "")
        if answer.get("problem") is None:
            return MemoryTrace.model_validate(answer["trace"])
    except (ValueError, ValidationError, KeyError, AttributeError) as error:
        raise UsageError(
            f"the trainer must answer with a trace, found none; it ended with code {done.returncode}"
        ) from error
    raise UsageError(f"the trainer must be able to trace the model, found: {answer['problem']}")
