from __future__ import annotations

import json

import pytest
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode

from tests.support.cli_jobs import succeeded, training
from tests.support.kubectl_program import KubectlProgram


def test_suspend_and_resume_change_one_field(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(training())
    assert main(["suspend", "support-bot"]) == 0
    assert main(["resume", "support-bot"]) == 0
    assert capsys.readouterr().out == (
        "finetunejob.finetune.dev/support-bot suspended\nfinetunejob.finetune.dev/support-bot resumed\n"
    )
    patches = [word for call in cluster.calls for word in call["arguments"] if word.startswith("--patch=")]
    assert patches == ['--patch={"spec": {"suspend": true}}', '--patch={"spec": {"suspend": false}}']


def test_the_changed_job_can_be_printed(cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.put(training())
    assert main(["suspend", "support-bot", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["suspend"] is True


def test_an_ended_job_is_not_suspended(cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.put(succeeded())
    assert main(["suspend", "support-bot"]) == ExitCode.USAGE
    assert "must not have ended" in capsys.readouterr().err


def test_of_several_jobs_none_is_changed_if_one_has_ended(cluster: KubectlProgram) -> None:
    cluster.put(training("first"))
    cluster.put(succeeded("second"))
    assert main(["suspend", "first", "second"]) == ExitCode.USAGE
    assert not any("patch" in call["arguments"] for call in cluster.calls)
