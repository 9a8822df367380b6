"""Canaries of a model: packed rows, the merge, and gradient checkpointing. A failing one names the layer."""

from __future__ import annotations

import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.contract.run_spec import Lora
from finetune_trainer.errors import StageError
from finetune_trainer.model.module_outputs import ModuleOutputs
from finetune_trainer.model.output_head import body, language_model
from finetune_trainer.model.packing_canary import packing_obstacle
from finetune_trainer.model.text_model import runnable_on_text
from finetune_trainer.proof.small_run import LENGTHS, SmallRun
from finetune_trainer.stages.prepare.model_proof import Findings

_STEPS = 2
_LONGEST_ERROR = 200
_SAME = 1e-3
_GRADIENTS = 1e-4
LORA = Lora.model_validate(
    {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear", "variant": "Standard"}
)


def try_model(config: Any) -> Findings:
    """Try a small random model of the architecture of `config`.

    Raises any error of a small model that cannot run before it is quantized; it proves nothing. A later error proves that
    this trainer does not train the architecture.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = SmallRun(Path(folder), LORA, vocabulary=None)
        run.build(config)
        run.prepare()
        try:
            run.adapt()
            return findings(run)
        except StageError as error:
            return Findings(training=error.message)
        except Exception as error:  # noqa: BLE001 -- any code of transformers runs here
            return Findings(training=describe_error(error))


def describe_error(error: BaseException) -> str:
    """Return the error and the last place of its traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"found {type(error).__name__} in {place}: {' '.join(str(error).split())[:_LONGEST_ERROR]}"


def findings(run: SmallRun) -> Findings:
    """Try a run whose model is adapted."""
    packing = packing_obstacle(run.adapted, max(LENGTHS))
    checkpointing = checkpointing_problem(run)
    run.train(_STEPS, packed=packing is None)
    return Findings(packing=packing, merge=_merge(run), checkpointing=checkpointing)


def _merge(run: SmallRun) -> str | None:
    merged = run.merge()
    compared = run.compare(merged)
    if compared.equal:
        return None
    layer = _first_difference(language_model(run.adapted), runnable_on_text(merged), run.probe())
    return (
        f"its merged logits must be those of the trained model, found a difference of {compared.difference:.2g} of the "
        f"largest one, with an effect of the adapter of {compared.effect:.2g}, first in {layer}"
    )


def checkpointing_problem(run: SmallRun) -> str | None:
    """Return where the gradients with gradient checkpointing differ from those without it; None if they are equal."""
    model = run.adapted
    step = run.step(packed=False)
    _spread(model)
    model.train()
    torch.manual_seed(1)
    plain = run.gradients(step)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        torch.manual_seed(1)
        repeated = run.gradients(step)
    finally:
        language_model(model).activation_checkpointing_disable()
    for name, gradient in plain.items():
        largest = float(gradient.abs().max())
        other = repeated.get(name)
        difference = float("inf") if other is None else float((gradient - other).abs().max())
        if not difference <= _GRADIENTS * largest + torch.finfo(torch.float32).tiny:
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            return (
                f"gradients with checkpointing must be those without, found a difference of {difference:.2g} (the largest "
                f"is {largest:.2g}) in {layer}"
            )
    return None


@torch.no_grad()
def _spread(model: Any) -> None:
    """Let the adapter have an effect, so that each of its weights has a gradient."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


@torch.no_grad()
def _first_difference(trained: Any, merged: Any, ids: torch.Tensor) -> str:
    """Return the name of the first module, in the order in which modules end, whose output differs.

    The merged model may be a larger one, of which the trained one is a part.
    """
    layers = body(trained)
    path = next(name for name, module in trained.named_modules() if module is layers)
    same = next((module for module in merged.modules() if type(module) is type(layers)), merged)
    outputs = []
    for model, watched_part in ((trained, layers), (merged, same)):
        watched = ModuleOutputs()
        with watched.watching(watched_part):
            model(input_ids=ids, use_cache=False)
        outputs.append(watched.found)
    first, second = outputs
    for name, output in first.items():
        other = second.get(name)
        if other is None or other.shape != output.shape:
            continue
        if float((output - other).abs().max()) > _SAME * float(output.abs().max()):
            return f"{path}.{name}"
    return "the output head"
