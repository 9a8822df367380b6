"""Answers of base and tuned model to held-out rows and sample prompts: nothing but a stop ends the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation import generation
from finetune_trainer.evaluation.answers import MAXIMUM_REASON, Asking, ask, reason_of
from finetune_trainer.model.load import load_quantized
from finetune_trainer.stages.train.dataset import open_table
from finetune_trainer.workspace.layout import WorkspaceLayout
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from tests.support import workspaces


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> WorkspaceLayout:
    root = tmp_path_factory.mktemp("answers")
    workspaces.write_base(root / "base", "qwen3")
    return workspaces.prepare(root / "workspace", root / "base")


@pytest.fixture(scope="module")
def asking(layout: WorkspaceLayout) -> Asking:
    torch.manual_seed(5)
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model: Any = get_peft_model(load_quantized(layout.quantized_model, "cpu"), settings)
    stop = AutoTokenizer.from_pretrained(layout.base).eos_token_id
    return Asking(model.eval(), layout.base, (stop,), lambda *_: None, lambda _: False)


def run_with(layout: WorkspaceLayout, **evaluation: Any) -> RunSpec:
    run = workspaces.run_spec(layout.root, layout.root / "output").model_dump(mode="json", by_alias=True)
    run["evaluation"] |= {"generatedRows": 4, **evaluation}
    return RunSpec.model_validate(run)


def test_held_out_rows_are_answered_judged_and_shown(layout: WorkspaceLayout, asking: Asking) -> None:
    found = ask(run_with(layout), asking, open_table(layout.validation_table).first(8))
    (exact,) = found.metrics
    assert (exact.name, exact.rows, exact.reason) == ("ExactMatch", 4, None)
    assert len(found.rows) == 4
    assert found.samples == found.rows[:3]
    row = found.rows[0]
    assert row.prompt.startswith("<|im_start|>user\nsay ")
    assert row.prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    number = row.prompt.split("say ")[1].split("<")[0]
    assert row.reference == f"{number} {number}"
    assert row.base is not None
    assert row.tuned is not None
    assert row.base != row.tuned


def test_sample_prompts_are_rendered_as_a_server_does(layout: WorkspaceLayout, asking: Asking) -> None:
    run = run_with(layout, generatedRows=0, samplePrompts=["say 7", "höre <b>"])
    found = ask(run, asking, open_table(layout.validation_table).first(8))
    assert (found.metrics, found.rows) == ((), ())
    assert [(sample.prompt, sample.row, sample.reason) for sample in found.samples] == [
        ("say 7", None, None),
        ("höre <b>", None, None),
    ]
    tokenizer = AutoTokenizer.from_pretrained(layout.base)
    ids = tokenizer("<|im_start|>user\nsay 7<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    tuned = found.samples[0].tuned
    assert tuned is not None
    with torch.no_grad():
        logits = asking.model(input_ids=torch.tensor([ids])).logits[0, -1]
    assert tuned.text.startswith(str(tokenizer.decode(int(logits.argmax()))))


def test_nothing_is_generated_if_nothing_is_asked_for(layout: WorkspaceLayout) -> None:
    unused = Asking(None, Path("missing"), (), lambda *_: None, lambda _: False)
    assert ask(run_with(layout, generatedRows=0), unused, []).metrics == ()
    (metric,) = ask(run_with(layout, generatedRows=0, metrics=["JsonValid"]), unused, []).metrics
    assert (metric.rows, metric.reason) == (0, "evaluation.generatedRows is 0")


def test_a_model_that_cannot_generate_is_a_reason(layout: WorkspaceLayout, asking: Asking) -> None:
    def broken(*_: Any) -> None:
        raise NotImplementedError("no cache for this attention\nmore")

    hook = asking.model.get_base_model().register_forward_pre_hook(broken)
    try:
        run = run_with(layout, samplePrompts=["hi"], metrics=["ExactMatch", "JsonFields"])
        found = ask(run, asking, open_table(layout.validation_table).first(8))
    finally:
        hook.remove()
    reason = "the model could not generate: no cache for this attention"
    assert [(metric.rows, metric.reason) for metric in found.metrics] == [(0, reason)] * 2
    assert [(sample.prompt, sample.reason) for sample in found.samples] == [("hi", reason)]


def test_a_tokenizer_that_cannot_be_read_is_a_reason(layout: WorkspaceLayout, asking: Asking) -> None:
    empty = layout.root / "empty"
    empty.mkdir()
    lost = Asking(asking.model, empty, asking.stops, asking.progress, asking.out_of_memory)
    (metric,) = ask(run_with(layout), lost, open_table(layout.validation_table).first(8)).metrics
    assert metric.reason is not None
    assert metric.reason.startswith("the tokenizer cannot be loaded")


def test_a_template_that_refuses_a_prompt_is_a_reason(layout: WorkspaceLayout, asking: Asking) -> None:
    path = layout.base / "chat_template.jinja"
    template = path.read_text()
    try:
        path.write_text("{{ raise_exception('Roles must alternate') if messages|length == 1 }}" + template)
        run = run_with(layout, samplePrompts=["hi"])
        found = ask(run, asking, open_table(layout.validation_table).first(8))
    finally:
        path.write_text(template)
    (sample,) = found.samples
    assert sample.reason is not None
    assert "template" in sample.reason
    assert found.metrics[0].rows == 4, "the rows are answered all the same"


def test_no_time_is_a_reason(
    layout: WorkspaceLayout, asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MAXIMUM_SECONDS", 0.0)
    found = ask(run_with(layout), asking, open_table(layout.validation_table).first(8))
    assert [metric.reason for metric in found.metrics] == ["there was too little time or GPU memory"]


def test_a_request_to_stop_ends_the_run(layout: WorkspaceLayout, asking: Asking) -> None:
    def stop(*_: int) -> None:
        raise StageError(Reason.INTERRUPTED, "stop")

    stopped = Asking(asking.model, asking.tokenizer, asking.stops, stop, asking.out_of_memory)
    with pytest.raises(StageError, match="stop"):
        ask(run_with(layout), stopped, open_table(layout.validation_table).first(8))


def test_a_reason_is_one_line_of_bounded_length() -> None:
    assert len(reason_of("the model failed", ValueError("x" * 500 + "\ny"))) == MAXIMUM_REASON
    assert reason_of("it failed", KeyError()) == "it failed: KeyError"
