"""`finetune plan --trace` sizes a model without a formula where the trainer is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_cli.__main__ import main
from finetune_cli.errors import UsageError
from finetune_cli.plan import trace
from finetune_cli.plan.inputs import read_spec
from finetune_cli.plan.trace import trace_model

from tests.support.memory_traces import WITHOUT_FORMULA


def test_without_a_trace_the_plan_says_when_the_size_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(WITHOUT_FORMULA), "utf-8")
    assert main(["plan", "--model", str(tmp_path), "--gpu", "L4", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "ModelSizeUnknown"
    assert "PREPARE has traced it" in document["reasons"][0]
    assert "--trace" in document["reasons"][0]


@pytest.mark.slow
def test_a_traced_model_gets_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(WITHOUT_FORMULA), "utf-8")
    arguments = ["plan", "--model", str(tmp_path), "--gpu", "L4", "--trace", "--longest-row", "64"]
    assert main([*arguments, "--set", "training.effectiveBatchSize=2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "Fits"
    assert document["model"]["family"] == "vaultgemma"
    assert document["model"]["layers"] is None
    assert document["model"]["parameters"] > 512 * 64
    assert {term["name"] for term in document["terms"]} >= {
        "dequantized weights",
        "embeddings and output head",
    }


def test_a_trace_needs_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "trainer_is_installed", lambda: False)
    with pytest.raises(UsageError, match="must be installed beside"):
        trace_model(read_spec(None, None, []), WITHOUT_FORMULA, 64)


def test_a_trace_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "trainer_is_installed", lambda: True)
    with pytest.raises(UsageError, match="did not end"):
        trace_model(read_spec(None, None, []), WITHOUT_FORMULA, 64, seconds=0)
