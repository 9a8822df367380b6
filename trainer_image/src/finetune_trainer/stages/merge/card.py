"""The model card of a published artifact, for people: its origin, what was measured, and how to serve it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from finetune_trainer.contract.model_config import NESTED
from finetune_trainer.contract.naming import base_model_name
from finetune_trainer.stages.merge.card_metadata import front_matter
from finetune_trainer.stages.merge.markdown import code, plain
from finetune_trainer.stages.merge.original_loss import OriginalLoss

if TYPE_CHECKING:
    from finetune_trainer.contract.result import PrepareResult, VerificationResult
    from finetune_trainer.contract.run_spec import ArtifactKind, RunSpec, Training
    from finetune_trainer.contract.train_result import EvaluationResult, TrainResult

_REPORT = "../report/merge.html"
_EXACT_BASE = "../base-as-trained"
_ONTO = {
    "TrainedWeights": "dequantized weights of the training, sum in float32, rounded once to nearest",
    "OriginalWeights": "original weights of the base, sum in float32, rounded once stochastically",
}


def model_card(
    run: RunSpec,
    kind: ArtifactKind,
    prepared: PrepareResult,
    trained: TrainResult,
    verification: VerificationResult | None,
    base_digest: str | None = None,
    original: OriginalLoss | None = None,
    licensed: dict[str, str] | None = None,
) -> str:
    """Return the Markdown card of one artifact.

    `verification` is None if no merged model was asked for. `base_digest` is that of the base as trained if it is
    published too, and `original` has the adapter's loss on the original base if it was measured. `licensed` has the license
    members of the base's card. The card of the base as trained says nothing of the job, so equal bases have equal files.
    """
    base = plain(base_model_name(run))
    adapter = kind == "Adapter"
    lines = front_matter(run, kind, prepared, licensed or {})
    if kind == "BaseAsTrained":
        return "\n".join(
            [
                *lines,
                f"# {base} as trained",
                "",
                *_base_as_trained(base, prepared),
                "",
                *_license(licensed),
                "",
            ]
        )
    lines += [f"# {plain(run.job.name)}", "", _honest(trained.evaluation, run.evaluation.minimum_rows), ""]
    lines += (
        _adapter(base, base_digest, original or _known(verification)) if adapter else [_merged(run, base)]
    )
    lines += ["", *_training(run, prepared, trained), *_proof(run, verification), ""]
    lines += [*_warnings(verification), *_serving_advice(run, prepared), "", *_license(licensed), ""]
    return "\n".join(lines)


def _honest(evaluation: EvaluationResult, minimum_rows: int) -> str:
    """Return a sentence on what was found, and on what was not."""
    low, high = evaluation.interval
    change = f"the loss changed by {evaluation.difference:+.4f} nats per token (95 % interval {low:+.4f} to {high:+.4f})"
    rows = f"On {evaluation.rows} held-out rows, "
    if evaluation.verdict == "Improved":
        return f"{rows}{change}: this model predicts them better than its base."
    if evaluation.verdict == "Worse":
        return f"**This model is worse than its base.** {rows}{change}."
    if evaluation.verdict == "NoChange":
        return f"**No improvement was measured.** {rows}{change}, which may be due to chance."
    return f"**It is not known whether this model is better than its base.** {rows}{change}. A verdict needs {minimum_rows} rows."


def _license(licensed: dict[str, str] | None) -> list[str]:
    if licensed:
        return [f"The license of the base model, {plain(licensed['license'])}, applies to these weights."]
    return [
        "The license of the base model applies to these weights. Its card names none in a form that the hub knows."
    ]


def _known(verification: VerificationResult | None) -> OriginalLoss | None:
    if verification is None or verification.adapter_on_original_loss is None:
        return None
    return OriginalLoss(verification.trained_loss, verification.adapter_on_original_loss)


def _adapter(base: str, base_digest: str | None, loss: OriginalLoss | None) -> list[str]:
    about = (
        f"LoRA adapter for {base}, trained on its NF4 (double quantized) weights. It has learned corrections to them, so "
        "on other weights of this base it is another model."
    )
    lines = [about]
    if loss is not None:
        lines.append(
            f"On held-out rows the loss is {loss.trained:.4f} nats per token on the weights of the training, and "
            f"{loss.original:.4f} on the original weights."
        )
    if base_digest is not None:
        lines.append(
            f"Load it on `{_EXACT_BASE}` (digest `{base_digest}`) to get exactly the evaluated model; no bitsandbytes is "
            "needed."
        )
    else:
        lines.append(
            "To get exactly the evaluated model, load the base with that quantization, or publish `BaseAsTrained` too."
        )
    return lines


def _merged(run: RunSpec, base: str) -> str:
    if run.output.merge_onto == "OriginalWeights":
        return (
            f"{base} with a merged LoRA adapter, on the original weights of the base. The adapter was trained on NF4 "
            "weights, so this is not exactly the evaluated model. It does not need bitsandbytes."
        )
    return (
        f"{base} with a merged LoRA adapter. The adapter was trained on NF4 weights. These files hold the same "
        "weights, dequantized, so this is the evaluated model. It does not need bitsandbytes."
    )


def _base_as_trained(base: str, prepared: PrepareResult) -> list[str]:
    config = prepared.model.config or {}
    # transformers lists some text models among those with other senses alone.
    kind = config.get("model_type", "llama")
    whole = NESTED in config or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    loader = "AutoModelForMultimodalLM" if whole else "AutoModelForCausalLM"
    return [
        f"{base}, dequantized to bf16 from its NF4 (double quantized) weights. It is not tuned.",
        "",
        "An adapter that was trained on these weights is exactly the trained model on this base:",
        "",
        "```python",
        f"model = {loader}.from_pretrained('base-as-trained', dtype='bfloat16')",
        "model = PeftModel.from_pretrained(model, 'adapter')",
        "```",
    ]


def _training(run: RunSpec, prepared: PrepareResult, trained: TrainResult) -> list[str]:
    evaluation = trained.evaluation
    low, high = evaluation.interval
    return [
        "| | |",
        "|---|---|",
        f"| training examples | {prepared.dataset.training_examples} |",
        f"| optimizer steps | {_steps(trained)} |",
        f"| peak learning rate | {_rate(run.training)} |",
        f"| held-out loss, base | {evaluation.base_loss:.4f} nats per token |",
        f"| held-out loss, tuned | {evaluation.tuned_loss:.4f} nats per token |",
        f"| difference | {evaluation.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} |",
        f"| verdict | {evaluation.verdict} on {evaluation.rows} held-out rows |",
        *_measures(evaluation),
    ]


def _measures(evaluation: EvaluationResult) -> list[str]:
    """Return the rows about other measures than the loss per token; an earlier trainer measured none."""
    rows = []
    if evaluation.by_row is not None:
        found = evaluation.by_row
        low, high = found.interval
        rows.append(
            f"| held-out loss, each row once | {found.base:.4f} before, {found.tuned:.4f} after, difference "
            f"{found.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} |"
        )
    if evaluation.token_accuracy is not None:
        accuracy = evaluation.token_accuracy
        rows.append(_share_row("token accuracy", accuracy.base, accuracy.tuned, accuracy.interval))
    for metric in evaluation.metrics or ():
        if metric.base is not None and metric.tuned is not None and metric.interval is not None:
            name = f"{metric.name} on {metric.rows} answers"
            rows.append(_share_row(name, metric.base, metric.tuned, metric.interval))
    return rows


def _share_row(name: str, base: float, tuned: float, interval: tuple[float, float]) -> str:
    low, high = (100 * bound for bound in interval)
    return (
        f"| {name} | {base:.1%} before, {tuned:.1%} after, 95 % interval of the difference {low:+.1f} to {high:+.1f} "
        "points |"
    )


def _rate(training: Training) -> str:
    reason = training.learning_rate_reason
    return f"{training.learning_rate:g}" + ("" if reason is None else f", {plain(reason)}")


def _steps(trained: TrainResult) -> str:
    """Return the steps of the training, and the one whose adapter this is if it is not the last."""
    chosen = trained.selection
    if chosen is None or chosen.published_step == trained.steps:
        return str(trained.steps)
    return f"{trained.steps}, of which step {chosen.published_step} has the smallest loss and is published"


def _proof(run: RunSpec, verification: VerificationResult | None) -> list[str]:
    """Return the rows about the merge; none if no merged model was asked for. A number that is not known has no row."""
    if verification is None:
        return []
    found = verification
    # A merge onto the original weights is compared with the adapter on these, before any rounding.
    original = run.output.merge_onto == "OriginalWeights"
    reference, base = ("adapter on original", "original") if original else ("trained", "base")
    rows: list[tuple[str, str | None]] = [
        ("merged onto", _ONTO[run.output.merge_onto]),
        ("proof of the merge", found.verdict),
        (f"KL({reference}, merged)", f"{found.kl_divergence:.3g} nats per token"),
        (f"KL({reference}, {base}), the adapter's effect", _number(found.base_divergence, " nats per token")),
        ("KL of rounding and arithmetic alone", _number(found.noise_divergence, " nats per token")),
        (f"slope of the merged on the {reference} effect", _slope(found)),
        ("update that survived rounding", _share(found.surviving_update)),
        ("weakest tensor", _weakest(found)),
        ("loss of the trained model on the proof's rows", f"{found.trained_loss:.4f} nats per token"),
        ("loss of the merged model on them", f"{found.merged_loss:.4f} nats per token"),
        (
            "loss of the adapter on the original base",
            _number(found.adapter_on_original_loss, " nats per token", 5),
        ),
        ("report", f"[{_REPORT}]({_REPORT})"),
    ]
    return [f"| {name} | {value} |" for name, value in rows if value is not None]


def _number(value: float | None, unit: str, digits: int = 3) -> str | None:
    return None if value is None else f"{value:.{digits}g}{unit}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.2%} by projection"


def _slope(found: VerificationResult) -> str | None:
    if found.slope is None:
        return None
    allowed = "" if found.slope_tolerance is None else f", 1 within {found.slope_tolerance:.4f} is accepted"
    return f"{found.slope:.4f}{allowed}"


def _weakest(found: VerificationResult) -> str | None:
    if found.weakest_tensor is None or found.weakest_survival is None:
        return None
    return f"{code(found.weakest_tensor, in_table=True)}, {found.weakest_survival:.2%}"


def _warnings(verification: VerificationResult | None) -> list[str]:
    warnings = (verification.warnings if verification is not None else None) or ()
    return [
        line for warning in warnings for line in (f"**{plain(warning.code)}**: {plain(warning.message)}.", "")
    ]


def _serving_advice(run: RunSpec, prepared: PrepareResult) -> list[str]:
    arguments = run.model.chat_template_arguments
    text = "Use the chat template in this folder"
    if arguments:
        text += f" with the template arguments of the training: {code(json.dumps(arguments))}"
    lines = [f"{text}."]
    if prepared.dataset.end_tokens:
        ends = ", ".join(f"{code(token.text)} ({token.id})" for token in prepared.dataset.end_tokens)
        lines.append(f"An answer ends with {ends}, and `generation_config.json` names it as a stop token.")
    return lines
