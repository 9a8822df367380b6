"""Summarize the results of a run for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.contract.rung_text import rung_text


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
            if result.get("reason") == "WithheldByGate":
                lines.append("the workspace keeps the trained adapter and its checkpoints")
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
        lines += _rungs(train)
        lines += _batching(train)
        lines += _attention(train)
        lines += _kernels(train)
        evaluation = train["evaluation"]
        low, high = evaluation["interval"]
        lines.append(
            f"verdict   {evaluation['verdict']}: loss {evaluation['baseLoss']:.4f} -> {evaluation['tunedLoss']:.4f} "
            f"on {evaluation['rows']} held-out rows (difference in [{low:.4f}, {high:.4f}])"
        )
        lines += _measures(evaluation)
        lines += _selection(train)
    merge = results.get("Merge", {}).get("merge")
    if merge:
        lines += [f"artifact  {a['kind']} {a['uri']} {a['digest']}" for a in merge["artifacts"]]
        if merge["verification"]:
            check = merge["verification"]
            lines.append(
                f"verified  {_proof(check)}; answered {check['prompt'][-60:]!r} with {check['answer'][:80]!r}"
            )
            lines += _survival(check)
            lines += [f"warning   {_sentence(warning)}" for warning in check.get("warnings") or ()]
    return "\n".join(lines) or "the trainer ended without a result"


def _selection(train: Mapping[str, Any]) -> list[str]:
    """The step whose adapter is published, if the loss on held-out rows decided."""
    chosen = train.get("selection")
    if not chosen:
        return []
    early = f", which ended before step {chosen['plannedSteps']}" if chosen["stoppedEarly"] else ""
    measured = f"{chosen['measurements']} measurements on {chosen['rows']} other held-out rows"
    return [f"selected  step {chosen['publishedStep']} of {train['steps']}{early} ({measured})"]


def _rungs(train: Mapping[str, Any]) -> list[str]:
    """The rung that trained and those that did not fit, if there were any."""
    failed = train.get("failedRungs")
    if not failed:
        return []
    names = ", ".join(rung_text(rung) for rung in failed)
    return [f"memory    the GPU was full with {names}; trained with {rung_text(train['rung'])}"]


def _batching(train: Mapping[str, Any]) -> list[str]:
    """How the rows shared passes. A trainer before contract 1.6 does not say."""
    found = train.get("batching")
    if not found:
        return []
    share = f", {found['realTokens']:.1%} real tokens" if found.get("realTokens") is not None else ""
    reason = f" ({found['reason']})" if found.get("reason") else ""
    return [f"passes    {found['kind']}{share}{reason}"]


def _attention(train: Mapping[str, Any]) -> list[str]:
    """The attention of the passes. A trainer before contract 1.8 does not say."""
    found = train.get("attention")
    return [f"attention {found['backend']} ({found['reason']})"] if found else []


def _kernels(train: Mapping[str, Any]) -> list[str]:
    """The fused kernels of the steps. A trainer before contract 1.8 does not say."""
    found = train.get("kernels")
    return [f"kernels   {', '.join(found['used']) or 'none'} ({found['reason']})"] if found else []


def _measures(evaluation: Mapping[str, Any]) -> list[str]:
    """What the losses do not say. A trainer before contract 1.5 sends none of it."""
    lines = []
    if evaluation.get("neededRows") is not None:
        lines.append(f"rows      about {evaluation['neededRows']} are needed for a clear verdict")
    if by_row := evaluation.get("byRow"):
        lines.append(
            f"by row    loss {by_row['base']:.4f} -> {by_row['tuned']:.4f}{_interval(by_row, '+.4f')}"
        )
    shares = [{"name": "TokenAccuracy", **accuracy}] if (accuracy := evaluation.get("tokenAccuracy")) else []
    for found in (*shares, *(evaluation.get("metrics") or ())):
        if found.get("reason") is not None:
            lines.append(f"metric    {found['name']} was not measured: {found['reason']}")
            continue
        rows = f" on {found['rows']} rows" if "rows" in found else ""
        lines.append(
            f"metric    {found['name']} {found['base']:.1%} -> {found['tuned']:.1%}{rows}{_interval(found, '+.1%')}"
        )
    return lines


def _interval(paired: Mapping[str, Any], form: str) -> str:
    low, high = paired["interval"]
    return f" (difference in [{low:{form}}, {high:{form}}])"


def _proof(check: Mapping[str, Any]) -> str:
    """The verdict on the merge with its numbers. A trainer before contract 1.4 sends the divergence alone."""
    text = f"KL {_number(check['klDivergence'])} nats per token over {check['tokens']} tokens"
    if check.get("verdict") is None:
        return text
    numbers = {"adapter's effect": "baseDivergence", "noise": "noiseDivergence", "slope": "slope"}
    known = [
        f"{name} {_number(check[member])}"
        for name, member in numbers.items()
        if check.get(member) is not None
    ]
    return f"{check['verdict']}: {', '.join([text, *known])}"


def _survival(check: Mapping[str, Any]) -> list[str]:
    """The share of the update in the written weights, and the loss of the adapter on the original base, if known."""
    lines = []
    if check.get("survivingUpdate") is not None:
        line = f"update    {check['survivingUpdate']:.2%} survived rounding"
        if check.get("weakestSurvival") is not None and check.get("weakestTensor") is not None:
            line += f", the least {check['weakestSurvival']:.2%} in {check['weakestTensor']}"
        lines.append(line)
    if check.get("adapterOnOriginalLoss") is not None:
        lines.append(
            f"losses    trained {check['trainedLoss']:.4f}, merged {check['mergedLoss']:.4f}, "
            f"adapter on the original base {check['adapterOnOriginalLoss']:.4f} nats per token"
        )
    return lines


def _number(value: float) -> str:
    return f"{value:.4g}"


def _sentence(warning: Mapping[str, Any] | str) -> str:
    """A warning of the dataset report. In contract 1.0 a warning is its message alone."""
    return warning if isinstance(warning, str) else f"{warning['code']}: {warning['message']}"
