"""Tiny models of many more families go through all stages, or PREPARE refuses them by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.load import load_quantized
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support import workspaces
from tests.support.loaders.serve_models import row_logits
from tests.support.more_families import CHEAP, MORE, REFUSED
from tests.support.published_models import Published, tokenizer_of, write_published
from tests.support.tiny_models import conversation_rows, write_rows

pytestmark = [pytest.mark.loaders, pytest.mark.slow]


def _run(root: Path, model: Published) -> RunSpec:
    write_published(root / "base", model)
    write_rows(root / "rows.jsonl", conversation_rows(32))
    run = workspaces.run_spec(
        root / "workspace", root / "output", maximumSteps=4, learningRate=0.005, maximumLength=256
    )
    document = json.loads(run.model_dump_json(by_alias=True, exclude_unset=True))
    document["model"] = {
        "source": {"kind": "Directory", "path": str(root / "base")},
        "chatTemplateArguments": {},
    }
    document["dataset"]["source"] = {"kind": "File", "path": str(root / "rows.jsonl")}
    document["dataset"]["validation"] = {"fraction": 0.25}
    return RunSpec.model_validate_json(json.dumps(document))


def _logits(network: Any, model: Published) -> Any:
    """Return the logits of one unseen row, apart from the padding token's, which a loader may set to zero."""
    tokenizer = tokenizer_of(model)
    ids = tokenizer("what is 107 + 1 it is", add_special_tokens=False)["input_ids"]
    return np.delete(row_logits(network.eval(), [ids]), tokenizer.pad_token_id or 0, axis=-1)


@pytest.mark.parametrize(
    "name", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.full) for name in MORE]
)
def test_a_family_trains_and_its_merge_is_proven_and_loads(tmp_path: Path, name: str) -> None:
    """The merged model is loaded as any user would load it."""
    run = _run(tmp_path, MORE[name])
    prepare(run, NullReporter())
    assert train(run, NullReporter()).steps == 4
    verification = merge(run, NullReporter()).verification
    assert verification is not None
    assert verification.verdict == "Proven"
    layout = WorkspaceLayout(run.workspace.path)
    base = load_quantized(layout.quantized_model, "cpu")
    untrained = _logits(base, MORE[name])
    trained = _logits(PeftModel.from_pretrained(base, layout.adapter), MORE[name])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "output" / "merged", dtype="float32")
    noise = np.abs(_logits(merged, MORE[name]) - trained).max()
    # Weights rounded to bf16 move the logits of LFM2 by 11 % of the effect, exact ones by nothing.
    assert noise <= 0.15 * np.abs(trained - untrained).max()


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_trained_is_refused_by_name(tmp_path: Path, name: str) -> None:
    model, said = REFUSED[name]
    with pytest.raises(StageError, match=said) as caught:
        prepare(_run(tmp_path, model), NullReporter())
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
