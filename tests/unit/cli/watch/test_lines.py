from __future__ import annotations

from typing import Any

import pytest
from finetune_cli.watch.lines import change_line

from tests.support.cli_jobs import cli_job, failed, succeeded, training


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (cli_job(), "support-bot Pending"),
        (training(), "support-bot Training Training 40% 18/45 loss 1.2345"),
        (succeeded(), "support-bot Succeeded Improved pvc://team-a/models/support-bot/merged"),
        (
            failed(),
            f"support-bot Failed TooManyRowsRejected: {failed()['status']['failure']['message']}",
        ),
    ],
)
def test_each_state_has_one_line(job: dict[str, Any], line: str) -> None:
    assert change_line(job) == line


def test_a_hostile_message_stays_on_its_line() -> None:
    job = failed()
    job["status"]["conditions"][0]["message"] = "a\nsupport-bot Succeeded\x1b[2J"
    assert "\n" not in change_line(job)
    assert "\x1b" not in change_line(job)
