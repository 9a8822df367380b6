"""The step of PREPARE that traces the memory of a run, in a process of its own: it needs TRAIN's code, and may fail.

The trace depends on the model's config, the run's training and the longest row. A trace that is in the workspace or in the
cache of quantized models is not made again. A failure ends the stage only if nothing else can size the model.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from finetune_trainer.contract.memory_trace import TraceAnswer
from finetune_trainer.contract.model_config import has_formula
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.layout import digest_of, read_marker, write_json_atomically, write_marker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec, Training
    from finetune_trainer.workspace.layout import WorkspaceLayout

SECONDS = 150.0
"""Time after which the process is stopped. It ends by itself after less (`trace.command`), unless the node is overloaded."""
ONLY_SECONDS = 600.0
"""The same if nothing else can size the model."""
FOLDER = "traces"
_STEP = "trace"
_FORMAT = 6  # increase it if the same inputs would give another trace
_DECISIVE = {
    "effective_batch_size", "micro_batch_size", "gradient_checkpointing", "lora", "router_aux_loss_coefficient",
}  # fmt: skip
"""What of `training` a trace depends on."""
TOOLS = ("bitsandbytes", "peft", "torch", "transformers", "trl")
_LONGEST_PROBLEM = 256
_KILLED = "its process was killed, as the kernel does if the memory of the container is used up"
_log = logging.getLogger(__name__)


def needs_trace(run: RunSpec, config: Mapping[str, Any]) -> bool:
    """Return whether the operator can use a trace of a model with this config.json.

    A run on a CPU takes no GPU. It is sized all the same, and for that it needs a trace only if there is no formula.
    """
    return run.device == "cuda" or not has_formula(config)


def require_size(run: RunSpec, config: Mapping[str, Any], traced: TraceAnswer) -> None:
    """Raise StageError(ModelSizeUnknown) if no GPU can be chosen for a model with this config.json.

    The job would end after PREPARE, so its weights would be fetched in vain. A run on a CPU needs no GPU. A process that
    was killed says nothing about the model: it is HostOutOfMemory, after which the operator gives more memory.
    """
    if traced.trace is not None or run.device != "cuda" or has_formula(config):
        return
    kind = config.get("model_type")
    if traced.problem == _KILLED:
        raise StageError(
            Reason.HOST_OUT_OF_MEMORY,
            f"PREPARE must trace a model of type {kind}, but {_KILLED}; raise resources.prepare.memory",
        )
    raise StageError(
        Reason.MODEL_SIZE_UNKNOWN,
        f"a model of type {kind} has no formula for its memory, so PREPARE must trace it, but it cannot: {traced.problem}; "
        "choose another model, or report its config.json",
    )


def inputs_digest(training: Training, config: Mapping[str, Any], length: int) -> str:
    """Return a digest of all that a trace depends on. Traces with the same digest are equal."""
    decisive = training.model_dump(mode="json", include=_DECISIVE, exclude_none=True)
    versions = {name: importlib.metadata.version(name) for name in TOOLS}
    return digest_of(
        {"config": config, "length": length, "training": decisive, "versions": versions, "format": _FORMAT}
    )


def trace_memory(
    run: RunSpec,
    layout: WorkspaceLayout,
    config: dict[str, Any],
    length: int,
    seconds: float | None = None,
) -> TraceAnswer:
    """Return the trace of a run with rows of at most `length` tokens, or why there is none after `seconds`."""
    request = {
        "training": run.training.model_dump(mode="json", by_alias=True),
        "config": config,
        "length": length,
    }
    inputs = inputs_digest(run.training, config, length)
    shared = None
    if run.model_cache is not None:
        shared = run.model_cache.path / FOLDER / f"{inputs.removeprefix('sha256:')[:32]}.json"
    known = TraceAnswer.read(read_marker(layout, _STEP, inputs)) or _read(shared)
    if known is not None and known.trace is not None:
        return known
    if seconds is None:
        seconds = SECONDS if has_formula(config) else ONLY_SECONDS
    found = _answer(json.dumps(request), seconds)
    if found.trace is None:
        _log.warning("the memory of the run cannot be traced: %s", found.problem)
        return found
    write_marker(layout, _STEP, inputs, found.document())
    if shared is not None:
        # A cache may be read-only or full.
        with suppress(OSError):
            write_json_atomically(shared, found.document())
    return found


def _read(path: Path | None) -> TraceAnswer | None:
    if path is None:
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return TraceAnswer.read(document) if isinstance(document, dict) else None


def _answer(request: str, seconds: float) -> TraceAnswer:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "finetune_trainer", "trace"],
            input=request,
            stdout=subprocess.PIPE,
            text=True,
            timeout=seconds,
            check=False,
            # Nothing is fetched: the config is all that a trace needs.
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    except subprocess.TimeoutExpired:
        return _problem(f"the trace must take at most {seconds:g} s, and did not end")
    except OSError as error:
        return _problem(f"the process of the trace cannot be started: {error.strerror}")
    if done.returncode == -signal.SIGKILL:
        return _problem(_KILLED)
    lines = done.stdout.splitlines()
    try:
        found = TraceAnswer.model_validate_json(lines[-1] if lines else "")
    except ValidationError:
        return _problem(f"the process of the trace ended with code {done.returncode} and without an answer")
    return found if found.problem is None else _problem(found.problem)


def _problem(text: str) -> TraceAnswer:
    return TraceAnswer(
        problem=text if len(text) <= _LONGEST_PROBLEM else text[: _LONGEST_PROBLEM - 3] + "..."
    )
