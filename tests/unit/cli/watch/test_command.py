from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from threading import Timer

import pytest
from finetune_cli.__main__ import main
from finetune_cli.cluster.kubectl import ApiUnavailableError
from finetune_cli.exit_codes import ExitCode
from finetune_cli.watch.command import Screen
from rich.console import Console

from tests.support.cli_jobs import cli_job, failed, succeeded, training
from tests.support.kubectl_program import KubectlProgram

FAST = ("--interval", "0.1")


def without_times(text: str) -> list[str]:
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]


def test_a_pipe_gets_one_line_for_each_change(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(cli_job(), training(step=9), training(step=9), training(step=18), succeeded())
    assert main(["watch", "support-bot", *FAST]) == ExitCode.SUCCESS
    assert without_times(capsys.readouterr().out) == [
        "support-bot Pending",
        "support-bot Training Training 20% 9/45 loss 1.2345",
        "support-bot Training Training 40% 18/45 loss 1.2345",
        "support-bot Succeeded Improved pvc://team-a/models/support-bot/merged",
    ]


def test_a_failed_job_fails_the_command(cluster: KubectlProgram) -> None:
    cluster.put(failed())
    assert main(["watch", "support-bot"]) == ExitCode.FAILED


def test_several_jobs_are_followed_until_all_have_ended(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(training("first"), succeeded("first"))
    cluster.put(training("second"), training("second"), failed("second"))
    assert main(["watch", "first", "second", *FAST]) == ExitCode.FAILED
    last = without_times(capsys.readouterr().out)[-2:]
    assert [line.split()[:2] for line in last] == [["first", "Succeeded"], ["second", "Failed"]]


def test_an_outage_of_the_api_server_is_said_once_and_outlived(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.fail(*["The connection to the server 10.0.0.1:6443 was refused"] * 3)
    cluster.put(succeeded())
    assert main(["watch", "support-bot", *FAST]) == ExitCode.SUCCESS
    assert capsys.readouterr().err.count("does not respond; trying again") == 1


def test_a_job_that_does_not_exist_ends_the_command_at_once(cluster: KubectlProgram) -> None:
    assert main(["watch", "absent"]) == ExitCode.NO_INPUT
    assert len(cluster.calls) == 1


def test_the_time_limit_has_its_own_exit_code(cluster: KubectlProgram) -> None:
    cluster.put(training())
    assert main(["watch", "support-bot", "--timeout", "0"]) == ExitCode.TIMEOUT


def test_json_is_one_document_for_each_change(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(training(), succeeded())
    assert main(["watch", "support-bot", "-o", "json", *FAST]) == ExitCode.SUCCESS
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["phase"] for line in lines] == ["Training", "Succeeded"]


def test_the_live_view_shows_all_jobs_and_an_outage() -> None:
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=False, markup=False)
    screen = Screen(console)
    screen.show(training("first"))
    screen.show(succeeded("second"))
    screen.lose(ApiUnavailableError("EOF"))
    console.print(screen.render())
    assert "first  Training" in output.getvalue()
    assert "second  Succeeded" in output.getvalue()
    assert "does not respond" in output.getvalue()
    screen.show(training("first"))
    output.truncate(0)
    console.print(screen.render())
    assert "does not respond" not in output.getvalue()


def test_ctrl_c_ends_the_command_without_a_traceback(cluster: KubectlProgram) -> None:
    cluster.put(training())
    # A shell lets its background jobs ignore the signal, and they pass that on.
    command = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-u",
        "-m",
        "finetune_cli",
        "watch",
        "support-bot",
    ]
    with subprocess.Popen(
        [*command, *FAST], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        limit = Timer(120, process.kill)  # so that a command that prints nothing or goes on fails the test
        limit.start()
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait() == ExitCode.INTERRUPTED
            assert "Traceback" not in process.stderr.read()
        finally:
            limit.cancel()
            process.kill()


def test_lines_have_the_time_in_utc(cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.put(succeeded())
    before = datetime.now(UTC).replace(microsecond=0)
    assert main(["watch", "support-bot"]) == 0
    printed = datetime.strptime(capsys.readouterr().out[:8], "%H:%M:%S").replace(tzinfo=UTC).time()
    assert printed >= before.time() or before.hour == 23
