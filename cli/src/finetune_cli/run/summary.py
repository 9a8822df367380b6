"""Summarize the results of a run for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summarize(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The outcome of a run as text, from the results (contract/result.schema.json) by stage, with every failure."""
    lines: list[str] = []
    for stage, result in results.items():
        if result["outcome"] != "Succeeded":
            lines.append(f"{stage}: {result['outcome']}: {result.get('reason')}: {result.get('message')}")
            if stage == "Merge" and result.get("reason") == "DestinationUnwritable":
                lines.append(
                    "the workspace keeps the trained adapter: run the same command again to publish it"
                )
    prepare = results.get("Prepare", {}).get("prepare")
    if prepare:
        dataset, model = prepare["dataset"], prepare["model"]
        lines.append(
            f"dataset   {dataset['digest']} ({dataset['kept']} of {dataset['rows']} rows kept, "
            f"{dataset['supervisedTokens']} supervised tokens)"
        )
        if reading := dataset.get("format"):
            lines.append(f"format    {reading['name']}: {reading['why']}")
        lines += [f"warning   {_sentence(warning)}" for warning in dataset["warnings"]]
        lines.append(f"weights   {model['digest']} ({model['quantizedModules']} modules in NF4)")
    train = results.get("Train", {}).get("train")
    if train:
        evaluation = train["evaluation"]
        low, high = evaluation["interval"]
        lines.append(
            f"verdict   {evaluation['verdict']}: loss {evaluation['baseLoss']:.4f} -> {evaluation['tunedLoss']:.4f} "
            f"on {evaluation['rows']} held-out rows (difference in [{low:.4f}, {high:.4f}])"
        )
    merge = results.get("Merge", {}).get("merge")
    if merge:
        lines += [f"artifact  {a['kind']} {a['uri']} {a['digest']}" for a in merge["artifacts"]]
        if merge["verification"]:
            check = merge["verification"]
            lines.append(
                f"verified  KL {check['klDivergence']:.5f} nats per token over {check['tokens']} tokens; "
                f"answered {check['prompt'][-60:]!r} with {check['answer'][:80]!r}"
            )
    return "\n".join(lines) or "the trainer ended without a result"


def _sentence(warning: Mapping[str, Any] | str) -> str:
    """A warning of the dataset report. In contract 1.0 a warning is its message alone."""
    return warning if isinstance(warning, str) else f"{warning['code']}: {warning['message']}"
