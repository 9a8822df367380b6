from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_cli.run.summary import summarize

from tests.support.repository import ROOT

FIXTURES = ROOT / "contract" / "fixtures"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "prepare-reported",
            ["format    ShareGPT: column `conversations`", "warning   ValidationLeakage: 1 of 2"],
        ),
        ("prepare-completed", ["warning   1 of 20 rows were refused"]),
    ],
)
def test_formats_and_warnings_of_both_contract_versions_are_shown(name: str, lines: list[str]) -> None:
    text = summarize({"Prepare": json.loads((FIXTURES / f"result.{name}.json").read_text("utf-8"))})
    for line in lines:
        assert line in text


def test_a_destination_that_fails_after_the_training_is_followed_by_what_to_do() -> None:
    failed = {"outcome": "Failed", "reason": "DestinationUnwritable", "message": "found: No space left"}
    text = summarize({"Merge": failed})
    assert "Merge: Failed: DestinationUnwritable: found: No space left" in text
    assert "run the same command again" in text
    assert "run the same command again" not in summarize({"Prepare": failed})


def test_the_passes_are_shown_with_the_share_of_real_tokens_and_the_reason() -> None:
    train = json.loads((FIXTURES / "result.train-laddered.json").read_text("utf-8"))
    text = summarize({"Train": train})
    assert "passes    Grouped, 97.5% real tokens (rows of this model that share a pass see each other" in text
    train["train"]["batching"] = {"kind": "Packed", "budgetTokens": 4096}
    assert "passes    Packed\n" in summarize({"Train": train})
    assert "attention Sdpa (FlashAttention keeps no scores; cuDNN's kernel is off" in text
    assert "kernels   RmsNorm, Rope (RmsNorm, Rope: as the reference" in text
    train["train"]["kernels"] = {"used": [], "reason": "training.kernels is Reference"}
    assert "kernels   none (training.kernels is Reference)" in summarize({"Train": train})
    del train["train"]["kernels"]
    assert "kernels" not in summarize({"Train": train})
    del train["train"]["attention"]
    assert "attention" not in summarize({"Train": train})
    del train["train"]["batching"]
    assert "passes" not in summarize({"Train": train})


def merged(name: str, **changes: Any) -> str:
    result = json.loads((FIXTURES / f"result.{name}.json").read_text("utf-8"))
    result["merge"]["verification"] |= changes
    return summarize({"Merge": result})


def test_the_proof_of_a_merge_is_shown_with_its_numbers() -> None:
    text = merged("merge-proven")
    for line in (
        "verified  Proven: KL 0.001 nats per token over 30 tokens, adapter's effect 0.116, noise 4e-05, slope 0.998;",
        "update    99.40% survived rounding, the least 85.00% in model.layers.0.self_attn.q_proj.weight",
        "losses    trained 1.0000, merged 1.0010, adapter on the original base 1.2500 nats per token",
        "warning   UpdateLostInTensor: model.layers.0",
        "artifact  BaseAsTrained pvc://team/artifacts/demo/base-as-trained",
    ):
        assert line in text
    assert "verified  Unproven: KL" in merged("merge-proven", verdict="Unproven")


def test_a_proof_of_an_earlier_trainer_has_its_divergence_alone() -> None:
    text = merged("merge-succeeded")
    assert "verified  KL 0.001 nats per token over 30 tokens; answered" in text
    assert not {"update", "losses", "warning"} & {line.split()[0] for line in text.splitlines()}


def test_what_the_gate_withholds_stays_in_the_workspace() -> None:
    failed = {"outcome": "Failed", "reason": "WithheldByGate", "message": "found Worse"}
    text = summarize({"Merge": failed})
    assert "Merge: Failed: WithheldByGate: found Worse" in text
    assert "keeps the trained adapter" in text


def test_the_published_step_of_a_training_with_selection_is_shown() -> None:
    result = json.loads((FIXTURES / "result.train-selected.json").read_text("utf-8"))
    line = "selected  step 30 of 40, which ended before step 100 (8 measurements on 10 other held-out rows)"
    assert line in summarize({"Train": result})
    del result["train"]["selection"]
    assert "selected" not in summarize({"Train": result})


def test_a_training_on_another_rung_names_the_rungs_that_did_not_fit() -> None:
    result = json.loads((FIXTURES / "result.train-laddered.json").read_text("utf-8"))
    text = summarize({"Train": result})
    assert (
        "memory    the GPU was full with micro-batches of 4 with AdamW and dequantized weights, without gradient "
        "checkpointing, micro-batches of 2 with AdamW8Bit, without gradient checkpointing; trained with micro-batches of "
        "2 with AdamW8Bit, with gradient checkpointing" in text
    )


def test_measures_and_needed_rows_of_an_evaluation_are_shown() -> None:
    result = json.loads((FIXTURES / "result.train-evaluated.json").read_text("utf-8"))
    text = summarize({"Train": result})
    for line in (
        "verdict   Inconclusive: loss 2.0000 -> 1.0000 on 2 held-out rows",
        "rows      about 20 are needed for a clear verdict",
        "by row    loss 2.2500 -> 1.2500 (difference in [-1.5000, -0.5000])",
        "metric    TokenAccuracy 50.0% -> 75.0% (difference in [+12.5%, +37.5%])",
        "metric    ExactMatch 0.0% -> 50.0% on 2 rows (difference in [-25.0%, +75.0%])",
        "metric    JsonValid was not measured: no reference answer is a JSON object or array",
    ):
        assert line in text


def test_an_evaluation_by_an_earlier_trainer_is_its_verdict() -> None:
    result = json.loads((FIXTURES / "result.train-measured.json").read_text("utf-8"))
    assert [line.split()[0] for line in summarize({"Train": result}).splitlines()] == ["verdict"]
