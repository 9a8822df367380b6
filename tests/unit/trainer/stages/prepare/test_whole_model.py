"""PREPARE of a model that also sees or hears: its text part is described and quantized, and rows are text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_operator.sizing.memory.shape import model_shape
from finetune_trainer.model.describe import inspect_base_model
from finetune_trainer.proof.small_run import small_model
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from transformers import AutoConfig

from tests.support.tiny_models import CHATML, conversation_rows, dataset_of, tiny_tokenizer, write_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.contract.run_spec import RunSpec

PROCESSOR = CHATML.replace("<|im_end|>\n", "<|im_end|>")
IMAGE = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image", "url": "a.png"}, {"type": "text", "text": "what is it"}],
        },
        {"role": "assistant", "content": "a cat"},
    ]
}
PARTS = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "what is "}, {"type": "text", "text": "500 + 1"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "it is 501"}]},
    ]
}


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "gemma3"
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model("gemma3")
    ends = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    for part in (config, config.text_config):
        for name, value in ends.items():
            setattr(part, name, value)
    small_model(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PROCESSOR}))
    return folder


def prepared(
    make_run: Callable[..., RunSpec], document: dict[str, Any], model: Path, rows: list[Any]
) -> tuple[dict[str, Any], WorkspaceLayout]:
    write_rows(Path(document["dataset"]["source"]["path"]), rows)
    run = make_run(
        model={"source": {"kind": "Directory", "path": str(model)}, "chatTemplateArguments": {}},
        dataset=dataset_of(document, rejectedRows={"maximumFraction": 0.2}),
    )
    result: dict[str, Any] = prepare(run, NullReporter()).document()["prepare"]
    return result, WorkspaceLayout(run.workspace.path)


def test_rows_of_text_are_taken_and_rows_with_images_rejected(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], whole_model: Path
) -> None:
    rows = [*conversation_rows(20), PARTS, IMAGE]
    result, layout = prepared(make_run, run_document, whole_model, rows)
    dataset = result["dataset"]
    assert (dataset["rows"], dataset["kept"]) == (22, 21)
    assert sum(dataset["rejected"].values()) == 1
    assert (layout.base / "chat_template.jinja").read_text() == PROCESSOR
    assert result["model"]["architecture"] == "Gemma3ForConditionalGeneration"


def test_the_text_part_alone_is_sized(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], whole_model: Path
) -> None:
    result, layout = prepared(make_run, run_document, whole_model, conversation_rows(20))
    model = result["model"]
    base = inspect_base_model(whole_model, rehearsed=True)
    assert model["parameters"] == base.parameters
    assert model_shape(model["config"]).parameters == base.parameters
    config = json.loads((layout.quantized_model / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("gemma3_text", ["Gemma3ForCausalLM"])
