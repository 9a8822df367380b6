from __future__ import annotations

from typing import Any

import pytest
from finetune_cli.watch.frame import bar, frame
from finetune_cli.watch.history import LossHistory

from tests.support.cli_jobs import NOW, cli_job, condition, failed, succeeded, training


def shown(job: dict[str, Any], *losses: float, width: int = 80, blocks: bool = False) -> str:
    history = LossHistory(dict(enumerate(losses)))
    return "".join(f"{line}\n" for line, _style in frame(job, history, NOW, width, blocks=blocks))


def test_a_training_job_shows_its_stages_its_bar_and_its_loss() -> None:
    assert shown(training(), 2.0, 1.5, 1.2345) == (
        "support-bot  Training  30m00s\n"
        "  Prepare   10m00s  succeeded\n"
        "  Train     20m00s  [#########...............] Training 40% 18/45 12m00s left\n"
        "  Merge             waiting\n"
        "  Loss      1.2345  #-_ 1,234 tokens/s\n"
    )


def test_a_terminal_with_utf8_gets_blocks() -> None:
    text = shown(training(), 2.0, 1.0, blocks=True)
    assert "█████████░░░░░░░░░░░░░░░ Training 40%" in text
    assert "█▁" in text


def test_a_succeeded_job_shows_its_result_and_its_artifacts() -> None:
    assert shown(succeeded()) == (
        "support-bot  Succeeded  28m00s  1 failed attempt(s)\n"
        "  Prepare   10m00s  succeeded\n"
        "  Train     15m00s  succeeded\n"
        "  Merge      3m00s  succeeded\n"
        "  Result   Improved: loss 2.011 -> 0.533 on 40 rows\n"
        "  Artifact pvc://team-a/models/support-bot/merged\n"
    )


def test_a_failed_job_says_why_and_no_stage_waits() -> None:
    assert shown(failed()) == (
        "support-bot  Failed  5m00s\n"
        "  Prepare    5m00s  failed\n"
        "  Train\n"
        "  Merge\n"
        "  TooManyRowsRejected: at most 1 % of the rows may be rejected, found 12 %; see\n"
        "  status.dataset.rejected\n"
    )


def test_a_failure_of_several_processes_names_the_first_one_and_its_node() -> None:
    job = failed()
    (attempt,) = job["status"]["attempts"]
    attempt |= {"rank": 3, "node": "gpu-2"}
    assert "  Prepare    5m00s  failed by rank 3 on gpu-2\n" in shown(job)
    del attempt["node"]
    assert "  Prepare    5m00s  failed by rank 3\n" in shown(job)
    attempt["node"] = "\x1b[2J"
    assert "\x1b" not in shown(job)


@pytest.mark.parametrize(
    ("conditions", "text"),
    [
        ([condition("Stalled", "True", "DoesNotFit", "needs 28 GiB")], "DoesNotFit: needs 28 GiB"),
        ([condition("Reconciling", "True", "WaitingForGpu", "no free GPU")], "WaitingForGpu: no free GPU"),
    ],
)
def test_a_waiting_job_says_for_what(conditions: list[dict[str, Any]], text: str) -> None:
    assert text in shown(cli_job(phase="Pending", conditions=conditions))


@pytest.mark.parametrize("width", [20, 40, 80, 120])
@pytest.mark.parametrize("job", [training("b" * 45), succeeded("b" * 45), failed("b" * 45)])
def test_no_line_is_wider_than_the_terminal(job: dict[str, Any], width: int) -> None:
    assert all(len(line) <= width for line in shown(job, 1.0, 2.0, width=width).splitlines())


@pytest.mark.parametrize(
    ("done", "total", "cells"),
    [(0, 45, 0), (45, 45, 24), (90, 45, 24), (1, 10**12, 0), (5, 0, 0), (-1, 10, 0)],
)
def test_a_bar_is_never_longer_than_its_frame(done: int, total: int, cells: int) -> None:
    assert bar(done, total, blocks=False) == f"[{'#' * cells}{'.' * (24 - cells)}]"


def test_escape_codes_of_a_job_never_reach_the_terminal() -> None:
    job = failed()
    job["status"]["conditions"][0]["message"] = "\x1b]0;title\x07\x1b[2J"
    assert "\x1b" not in shown(job)


def test_a_job_without_status_is_pending() -> None:
    job = cli_job()
    del job["status"]
    assert shown(job).startswith("support-bot  Pending")
