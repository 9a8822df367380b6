"""No weight is fetched before an operator could decide by the size of a model, whose family has no formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.prepare import memory_trace, stage
from finetune_trainer.telemetry.reporter import NullReporter, Reporter
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.memory_traces import WITHOUT_FORMULA
from tests.support.servers.model_hub import REPOSITORY, ModelHub, serving
from tests.support.tiny_models import tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finetune_trainer.contract.run_spec import RunSpec

PODS = {"port": 18080}


def write_model(folder: Path) -> None:
    """Write a small random model of a family without a formula, with the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    members = {**WITHOUT_FORMULA, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(members.pop("model_type"), **members)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """A hub with this model."""
    write_model(tmp_path / "served")
    served = ModelHub(tmp_path / "served")
    with serving(served) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield served


@pytest.fixture
def untraceable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a trace no time."""
    monkeypatch.setattr(memory_trace, "ONLY_SECONDS", 0.0)


def hub_model(document: dict[str, Any]) -> dict[str, Any]:
    source = {"kind": "HuggingFace", "repository": REPOSITORY, "revision": "main"}
    return {**document["model"], "source": source}


@pytest.mark.usefixtures("untraceable")
def test_a_run_on_a_gpu_ends_before_the_download_if_its_model_cannot_be_sized(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], hub: ModelHub
) -> None:
    run = make_run(model=hub_model(run_document), device="cuda")
    with pytest.raises(StageError, match="must trace it") as caught:
        stage.prepare(run, NullReporter())
    assert caught.value.reason is Reason.MODEL_SIZE_UNKNOWN
    assert "did not end" in caught.value.message
    assert hub.weight_requests == 0


@pytest.mark.usefixtures("untraceable")
def test_a_run_on_a_cpu_needs_no_size(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], hub: ModelHub
) -> None:
    result = stage.prepare(make_run(model=hub_model(run_document)), NullReporter()).prepare
    assert result is not None
    assert result.model.trace is None
    assert result.model.trace_problem
    assert hub.weight_requests > 0


@pytest.mark.slow
@pytest.mark.parametrize(("telemetry", "waits"), [(PODS, True), ({**PODS, "host": "127.0.0.1"}, False)])
def test_a_model_sized_by_its_trace_waits_for_the_operator_before_the_download(
    make_run: Callable[..., RunSpec],
    run_document: dict[str, Any],
    hub: ModelHub,
    monkeypatch: pytest.MonkeyPatch,
    telemetry: dict[str, Any],
    *,
    waits: bool,
) -> None:
    seen: list[tuple[int, str]] = []
    reporter = Reporter(NullReporter().identity, port=18080)

    def record(_reported: float) -> None:
        document = json.loads(json.dumps(reporter.document()))
        assert document["trace"]["length"] > 0
        seen.append((hub.weight_requests, document["activity"]))

    monkeypatch.setattr(stage, "await_decision", record)
    try:
        stage.prepare(make_run(model=hub_model(run_document), telemetry=telemetry), reporter)
    finally:
        reporter.close()
    assert seen == ([(0, "TracingMemory")] if waits else [])
    assert hub.weight_requests > 0
