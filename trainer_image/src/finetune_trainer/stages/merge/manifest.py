"""The origin of an artifact: the manifest for programs, and the model card for people."""

from __future__ import annotations

import importlib.metadata
import json
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer.contract.timestamps import rfc3339, utc_now
from finetune_trainer.model.naming import base_model_name

if TYPE_CHECKING:
    from finetune_trainer.contract.result import (
        PrepareResult,
        PublishedResult,
        TrainResult,
        VerificationResult,
    )
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.stages.merge.publish import SealedFile

_TOOLS = ("torch", "transformers", "trl", "peft", "bitsandbytes", "safetensors")


def manifest_document(run: RunSpec, results: PublishedResult, files: dict[str, SealedFile]) -> dict[str, Any]:
    """Return the manifest as JSON; `files` has digest and size by path in the destination."""
    prepare = results.prepare
    return {
        "version": "1.0",
        "specHash": run.spec_hash,
        "job": {"namespace": run.job.namespace, "name": run.job.name, "uid": run.job.uid},
        "publicationTime": rfc3339(utc_now()),
        "base": {
            "name": base_model_name(run),
            "commit": prepare.model.commit,
            "quantizedDigest": prepare.model.digest,
        },
        "datasetDigest": prepare.dataset.digest,
        "chatTemplateArguments": run.model.chat_template_arguments,
        "training": run.training.model_dump(mode="json", by_alias=True),
        "tools": {name: importlib.metadata.version(name) for name in _TOOLS},
        "files": files,
        "results": results.document(),
    }


def model_card(
    run: RunSpec,
    kind: Literal["Adapter", "Merged"],
    prepared: PrepareResult,
    trained: TrainResult,
    verification: VerificationResult | None,
) -> str:
    """Return the Markdown card of one artifact; `verification` is None if no merged model was asked for."""
    base = base_model_name(run)
    evaluation = trained.evaluation
    low, high = evaluation.interval
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        f"library_name: {'peft' if kind == 'Adapter' else 'transformers'}",
        "pipeline_tag: text-generation",
        "---",
        f"# {run.job.name}",
        "",
        _description(kind, base),
        "",
        "| | |",
        "|---|---|",
        f"| training examples | {prepared.dataset.training_examples} |",
        f"| optimizer steps | {trained.steps} |",
        f"| held-out loss, base | {evaluation.base_loss:.4f} nats per token |",
        f"| held-out loss, tuned | {evaluation.tuned_loss:.4f} nats per token |",
        f"| difference | {evaluation.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} |",
        f"| verdict | {evaluation.verdict} on {evaluation.rows} held-out rows |",
    ]
    if verification is not None:
        lines.append(f"| KL(trained, merged) | {verification.kl_divergence:.5f} nats per token |")
    lines += ["", *_serving_advice(run, prepared), ""]
    return "\n".join(lines)


def _description(kind: str, base: str) -> str:
    if kind == "Adapter":
        return (
            f"LoRA adapter for {base}, trained on its NF4 (double quantized) weights. To get exactly the evaluated "
            "model, load the base with that quantization."
        )
    return (
        f"{base} with a merged LoRA adapter. The adapter was trained on NF4 weights. These files hold the same "
        "weights, dequantized, so this is the evaluated model. It does not need bitsandbytes."
    )


def _serving_advice(run: RunSpec, prepared: PrepareResult) -> list[str]:
    arguments = run.model.chat_template_arguments
    text = "Use the chat template in this folder"
    if arguments:
        text += f" with the template arguments of the training: `{json.dumps(arguments)}`"
    lines = [f"{text}."]
    if prepared.dataset.end_tokens:
        ends = ", ".join(f"`{token.text}` ({token.id})" for token in prepared.dataset.end_tokens)
        lines.append(f"An answer ends with {ends}, and `generation_config.json` names it as a stop token.")
    return lines
