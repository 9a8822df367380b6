"""A job as lines for a terminal: its stages with bars and times, its loss, and why it waits or failed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from finetune_cli.cluster.client import condition, has_ended
from finetune_cli.jobs.summary import summary
from finetune_cli.jobs.timeline import STAGES, Attempt, stage_seconds, timeline
from finetune_cli.text import PHASE_STYLES, duration, moment, printable
from finetune_cli.watch.history import LossHistory

_BAR = 24
_STAGE_WIDTH = 8
_INDENT = "  "
Line = tuple[str, str]
"""A line and its style."""


def frame(
    job: Mapping[str, Any], losses: LossHistory, now: datetime, width: int, *, blocks: bool
) -> list[Line]:
    """Return the lines of one job, each of at most `width` characters."""
    facts = summary(job)
    style = PHASE_STYLES.get(facts["phase"] or "", "bold")
    lines = [(_headline(facts, job, now), style)]
    lines += [(line, "") for line in _stages(job, facts, now, blocks=blocks)]
    if losses.losses:
        lines.append((_loss_line(facts, losses, width, blocks=blocks), "cyan"))
    if facts["verdict"] is not None:
        lines.append((f"{_INDENT}{'Result':{_STAGE_WIDTH}} {_verdict(job)}", ""))
    lines += [(f"{_INDENT}{'Artifact':{_STAGE_WIDTH}} {uri}", "") for uri in facts["artifacts"]]
    lines += [(line, style) for line in _explanation(job, width)]
    return [(_cut(printable(line), width), line_style) for line, line_style in lines]


def _headline(facts: Mapping[str, Any], job: Mapping[str, Any], now: datetime) -> str:
    start, end = moment(facts["creationTime"]), moment(facts["completionTime"])
    age = "" if start is None else f"  {duration(((end or now) - start).total_seconds())}"
    retries = sum(attempt.outcome == "Failed" for attempt in timeline(job))
    again = f"  {retries} failed attempt(s)" if retries and facts["phase"] != "Failed" else ""
    return f"{facts['name']}  {facts['phase'] or 'Pending'}{age}{again}"


def _stages(
    job: Mapping[str, Any], facts: Mapping[str, Any], now: datetime, *, blocks: bool
) -> Iterator[str]:
    for stage in STAGES:
        seconds = stage_seconds(job, stage, now)
        last = [attempt for attempt in timeline(job) if attempt.stage == stage][-1:]
        spent = "" if seconds is None else duration(seconds)
        if not last:
            text = "" if has_ended(job) else "waiting"
        elif last[0].end is None:
            text = _running(facts, now, blocks=blocks)
        else:
            text = (last[0].outcome or "").lower() + _place(last[0])
        yield f"{_INDENT}{stage:{_STAGE_WIDTH}} {spent:>7}  {text}".rstrip()


def _place(attempt: Attempt) -> str:
    """Return which of several processes failed first, and where; empty if that is not known."""
    if attempt.rank is None:
        return ""
    return f" by rank {attempt.rank}" + (f" on {attempt.node}" if attempt.node else "")


def _running(facts: Mapping[str, Any], now: datetime, *, blocks: bool) -> str:
    """Return the bar of the current activity with its count and its expected end."""
    if facts["activity"] is None:
        return "starting"
    done, total = facts["step"] or 0, facts["totalSteps"] or 0
    parts = [bar(done, total, blocks=blocks)] if total else []
    parts += [facts["activity"], *([facts["percent"]] if facts["percent"] else [])]
    parts += [f"{done:,}/{total:,}"] if total and facts["activity"] == "Training" else []
    end = moment(facts["estimatedCompletionTime"])
    if end is not None and end > now:
        parts.append(f"{duration((end - now).total_seconds())} left")
    return " ".join(parts)


def bar(done: int, total: int, *, blocks: bool) -> str:
    """Return `done` of `total` as a bar of constant length."""
    cells = max(0, min(_BAR, _BAR * done // total)) if total > 0 else 0
    return "█" * cells + "░" * (_BAR - cells) if blocks else f"[{'#' * cells}{'.' * (_BAR - cells)}]"


def _loss_line(facts: Mapping[str, Any], losses: LossHistory, width: int, *, blocks: bool) -> str:
    values = list(losses.losses.values())
    start = f"{_INDENT}{'Loss':{_STAGE_WIDTH}} {values[-1]:7.4f}  "
    speed = f" {float(facts['tokensPerSecond']):,.0f} tokens/s" if facts["tokensPerSecond"] else ""
    room = width - len(start) - len(speed)
    return f"{start}{losses.sparkline(min(room, 48), blocks=blocks)}{speed}"


def _verdict(job: Mapping[str, Any]) -> str:
    found = job["status"]["evaluation"]
    return f"{found['verdict']}: loss {found.get('baseLoss')} -> {found.get('tunedLoss')} on {found.get('rows')} rows"


def _explanation(job: Mapping[str, Any], width: int) -> Iterator[str]:
    """Return why the job waits, stalls or failed. A job that makes progress needs no explanation."""
    for kind in ("Stalled", "Succeeded", "Reconciling"):
        found = condition(job, kind)
        failed = kind == "Succeeded" and found.get("status") == "False"
        waits = kind == "Stalled" and found.get("status") == "True"
        queued = kind == "Reconciling" and str(found.get("reason", "")).startswith("Waiting")
        if failed or waits or queued:
            text = printable(f"{found.get('reason')}: {found.get('message')}")
            yield from textwrap.wrap(text, width, initial_indent=_INDENT, subsequent_indent=_INDENT)
            return


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
