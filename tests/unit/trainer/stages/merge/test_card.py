from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.contract.train_result import SelectionResult, TrainResult
from finetune_trainer.stages.merge.card import model_card
from markdown_it import MarkdownIt

from tests.support.results import MERGE, PREPARE, PROVEN, TRAIN, fixture

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import ArtifactKind

Runs = Callable[..., RunSpec]
_DIGEST = "sha256:" + "b" * 64


def card(run: RunSpec, kind: ArtifactKind, base: str | None = None, **changes: Any) -> str:
    """Return the card of a merge with every number; `changes` replaces members of the proof."""
    assert PROVEN.verification is not None
    return model_card(run, kind, PREPARE, TRAIN, PROVEN.verification.model_copy(update=changes), base)


@pytest.mark.parametrize(
    ("kind", "library"), [("Adapter", "peft"), ("Merged", "transformers"), ("BaseAsTrained", "transformers")]
)
def test_a_card_names_the_library_that_loads_its_artifact(
    make_run: Runs, kind: ArtifactKind, library: str
) -> None:
    text = card(make_run(), kind)
    assert f"library_name: {library}\n" in text
    assert 'base_model: "tiny"\n' in text


@pytest.mark.parametrize("kind", ["Adapter", "Merged"])
def test_a_card_has_the_verdict_on_the_model_and_the_proof_of_the_merge(
    make_run: Runs, kind: ArtifactKind
) -> None:
    text = card(make_run(), kind)
    assert f"| verdict | {TRAIN.evaluation.verdict} on {TRAIN.evaluation.rows} held-out rows |" in text
    for row in (
        "| proof of the merge | Proven |",
        "| KL(trained, merged) | 0.001 nats per token |",
        "| KL(trained, base), the adapter's effect | 0.116 nats per token |",
        "| KL of rounding and arithmetic alone | 4e-05 nats per token |",
        "| slope of the merged on the trained effect | 0.9980, 1 within 0.0510 is accepted |",
        "| update that survived rounding | 99.40% by projection |",
        "| weakest tensor | `model.layers.0.self_attn.q_proj.weight`, 85.00% |",
        "| loss of the adapter on the original base | 1.25 nats per token |",
        "[../report/merge.html](../report/merge.html)",
        "**UpdateLostInTensor**",
    ):
        assert row in text


def test_a_card_names_the_learning_rate_and_the_published_step(make_run: Runs) -> None:
    run = make_run()
    assert f"| peak learning rate | {run.training.learning_rate:g} |" in card(run, "Adapter")
    reason = "5e-05 x 15 (LoRA, 100 steps)"
    chosen_rate = run.model_copy(
        update={"training": run.training.model_copy(update={"learning_rate_reason": reason})}
    )
    row = f"| peak learning rate | {run.training.learning_rate:g}, {reason} |"
    assert row in card(chosen_rate, "Adapter")
    assert f"| optimizer steps | {TRAIN.steps} |" in card(run, "Adapter")
    chosen = SelectionResult(
        rows=10,
        measurements=3,
        planned_steps=9,
        published_step=2,
        stopped_early=True,
        best_step=2,
        best_loss=0.5,
    )
    trained = TRAIN.model_copy(update={"selection": chosen})
    text = model_card(run, "Adapter", PREPARE, trained, PROVEN.verification, None)
    row = f"| optimizer steps | {TRAIN.steps}, of which step 2 has the smallest loss and is published |"
    assert row in text


def test_a_card_of_an_earlier_proof_has_no_row_for_an_unknown_number(make_run: Runs) -> None:
    text = model_card(make_run(), "Merged", PREPARE, TRAIN, MERGE.verification)
    assert "| KL(trained, merged) | 0.001 nats per token |" in text
    assert not [word for word in ("None", "slope", "survived", "proof of the merge") if word in text]


def test_a_card_without_a_merged_model_has_no_proof(make_run: Runs) -> None:
    text = model_card(make_run(), "Adapter", PREPARE, TRAIN, None)
    assert "KL(" not in text
    assert "merge.html" not in text


def test_a_card_names_the_weights_that_the_update_was_added_to(make_run: Runs) -> None:
    run = make_run()
    original = run.model_copy(
        update={"output": run.output.model_copy(update={"merge_onto": "OriginalWeights"})}
    )
    trained_text, original_text = card(run, "Merged"), card(original, "Merged")
    assert "this is the evaluated model" in trained_text
    assert "rounded once to nearest" in trained_text
    assert "this is not exactly the evaluated model" in original_text
    assert "rounded once stochastically" in original_text
    assert "| KL(trained, merged) |" in trained_text
    assert "| KL(adapter on original, merged) |" in original_text


def test_the_adapters_card_names_the_base_on_which_it_is_exact(make_run: Runs) -> None:
    text = card(make_run(), "Adapter", _DIGEST)
    assert f"`../base-as-trained` (digest `{_DIGEST}`)" in text
    assert "1.0000 nats per token on the weights of the training, and 1.2500 on the original weights" in text
    alone = card(make_run(), "Adapter", adapter_on_original_loss=None)
    assert "publish `BaseAsTrained` too" in alone
    assert "original weights" not in alone


def test_the_card_of_the_base_as_trained_says_nothing_of_the_job(make_run: Runs) -> None:
    """Two jobs with the same base publish the same files."""
    run = make_run()
    other = run.model_copy(update={"job": run.job.model_copy(update={"name": "another"})})
    text = card(run, "BaseAsTrained")
    assert text == card(other, "BaseAsTrained", trained_loss=9.0)
    assert "It is not tuned." in text


def test_a_card_names_the_template_arguments_of_the_training(make_run: Runs) -> None:
    run = make_run()
    model = run.model.model_copy(update={"chat_template_arguments": {"enable_thinking": False}})
    assert '`{"enable_thinking": false}`' in card(run.model_copy(update={"model": model}), "Merged")


def test_a_card_names_the_tokens_at_which_an_answer_ends(make_run: Runs) -> None:
    assert "An answer ends with `<|im_end|>` (2)" in card(make_run(), "Merged")
    dataset = PREPARE.dataset.model_copy(update={"end_tokens": None})
    earlier = PREPARE.model_copy(update={"dataset": dataset})
    assert "An answer ends" not in model_card(make_run(), "Merged", earlier, TRAIN, MERGE.verification)


def test_a_card_has_the_measures_beside_the_loss_if_they_are_known(make_run: Runs) -> None:
    evaluated = TrainResult.model_validate(fixture("train-evaluated")["train"])
    text = model_card(make_run(), "Adapter", PREPARE, evaluated, None)
    for row in (
        "| held-out loss, each row once | 2.2500 before, 1.2500 after, difference -1.0000, 95 % interval -1.5000 to -0.5000 |",
        "| token accuracy | 50.0% before, 75.0% after, 95 % interval of the difference +12.5 to +37.5 points |",
        "| ExactMatch on 2 answers | 0.0% before, 50.0% after, 95 % interval of the difference -25.0 to +75.0 points |",
    ):
        assert row in text
    assert "JsonValid" not in text, "what was not measured"
    assert "token accuracy" not in card(make_run(), "Adapter"), "the result of an earlier trainer"


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        ("Improved", "this model predicts them better than its base."),
        ("Worse", "**This model is worse than its base.**"),
        ("NoChange", "**No improvement was measured.**"),
        ("Inconclusive", "**It is not known whether this model is better than its base.**"),
    ],
)
def test_a_card_begins_with_an_honest_sentence_and_its_interval(
    make_run: Runs, verdict: str, sentence: str
) -> None:
    evaluation = TRAIN.evaluation.model_copy(update={"verdict": verdict, "interval": (-0.5, 0.25)})
    trained = TRAIN.model_copy(update={"evaluation": evaluation})
    text = model_card(make_run(), "Merged", PREPARE, trained, PROVEN.verification)
    first = text.split("---\n")[2].split("\n\n")[1]
    assert sentence in first
    assert "95 % interval -0.5000 to +0.2500" in first


def test_hostile_names_stay_text_in_the_card(make_run: Runs) -> None:
    """Names come from the base's files, from its tokenizer, and from the author of the job."""
    hostile = "a`b|c<script>alert(1)</script>[x](http://evil)\u202e\n# head"
    run = make_run(job={"namespace": "team", "name": hostile, "uid": "u"})
    ends = tuple(token.model_copy(update={"text": hostile}) for token in PREPARE.dataset.end_tokens or ())
    prepared = PREPARE.model_copy(update={"dataset": PREPARE.dataset.model_copy(update={"end_tokens": ends})})
    assert PROVEN.verification is not None
    proof = PROVEN.verification.model_copy(update={"weakest_tensor": hostile})
    text = model_card(run, "Merged", prepared, TRAIN, proof)
    assert "\u202e" not in text
    assert not [line for line in text.splitlines() if line.startswith("# head")]
    html = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert "<script" not in html
    assert 'href="http://evil' not in html
    assert html.count("<td>") % 2 == 0, "each row of the table has two cells"


def test_the_license_of_the_base_is_named_or_said_to_be_unknown(make_run: Runs) -> None:
    licensed = model_card(make_run(), "Merged", PREPARE, TRAIN, None, licensed={"license": "apache-2.0"})
    assert 'license: "apache-2.0"\n' in licensed
    assert "The license of the base model, apache-2.0, applies" in licensed
    assert "license:" not in card(make_run(), "Merged")
    assert "Its card names none" in card(make_run(), "Merged")
