from __future__ import annotations

from typing import Any

import pytest
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode

from tests.support.fake_kubectl import FakeKubectl
from tests.support.kept_jobs import frame, job, pod

RUNNING: dict[str, Any] = {
    "phase": "Running",
    "containerStatuses": [{"name": "trainer", "state": {"running": {}}}],
}


def serve(kubectl: FakeKubectl, *pods: dict[str, object], kept: bytes = b"", error: str = "") -> None:
    kubectl.answer("finetunejobs.finetune.dev", output=job())
    kubectl.answer("get", "pods", "-l", output={"items": list(pods)})
    kubectl.answer("logs", "-c", output=b"\x1b[31mof the pod\x1b[0m\n", error=error)
    kubectl.answer("persistentvolumeclaims", output={"metadata": {"name": "numbers-workspace"}})
    kubectl.answer("create", output={"metadata": {"name": "reader-1"}})
    kubectl.answer("get", "reader-1", output={"status": {"phase": "Succeeded"}})
    kubectl.answer("logs", "reader-1", output=kept)
    kubectl.answer("delete")


def test_a_running_stage_shows_the_log_of_its_pod(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(kubectl, pod(**RUNNING))
    assert main(["logs", "numbers", "-f"]) == 0
    assert capsys.readouterr().out == "of the pod\n"
    assert not kubectl.given(), "no pod is made"


def test_a_stage_without_a_pod_shows_the_kept_log(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(kubectl, pod(**RUNNING), kept=frame(b"of the \x1b[2Jworkspace\n", "prepare-0"))
    assert main(["logs", "numbers", "--stage", "prepare"]) == 0
    assert capsys.readouterr().out == "of the workspace\n"
    assert kubectl.given()[0]["spec"]["containers"][0]["args"] == [
        "kept",
        "/kept",
        "prepare",
        "--attempt",
        "0",
    ]
    assert "affinity" in kubectl.given()[0]["spec"], "a running stage has the claim mounted"


def test_a_pod_whose_node_is_gone_falls_back_to_the_kept_log(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: dict[str, Any] = {
        "phase": "Failed",
        "containerStatuses": [{"name": "trainer", "state": {"terminated": {}}}],
    }
    serve(kubectl, pod(**ended), kept=frame(b"kept\n", "train-1"), error="Error: node not found\n")
    assert main(["logs", "numbers"]) == 0
    assert capsys.readouterr().out == "kept\n"


def test_a_log_that_was_never_written_is_an_error_with_what_exists(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(kubectl, kept=frame(None, "prepare-0"))
    assert main(["logs", "numbers"]) == ExitCode.USAGE
    assert "the log of train attempt 1 must be kept, found prepare-0" in capsys.readouterr().err


def test_a_pod_that_has_not_started_says_what_it_waits_for(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}
    serve(kubectl, pod(phase="Pending", conditions=[condition]))
    assert main(["logs", "numbers"]) == ExitCode.USAGE
    assert "must have started, found: 0/3 nodes" in capsys.readouterr().err


def test_a_job_that_does_not_exist_has_the_exit_code_of_every_command(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.answer("get", error='Error from server (NotFound): finetunejobs.finetune.dev "a" not found')
    assert main(["logs", "a"]) == ExitCode.NO_INPUT
    assert main(["report", "a"]) == ExitCode.NO_INPUT
    assert '"a" not found' in capsys.readouterr().err


def test_following_outlives_the_wait_for_a_node_and_the_change_to_the_next_container(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_cli.logs.command._POLL_SECONDS", 0)
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}
    running: dict[str, Any] = {"state": {"running": {}}}
    ended: dict[str, Any] = {"state": {"terminated": {}}}
    states = (
        pod(phase="Pending", conditions=[condition]),
        pod(phase="Pending", conditions=[condition]),
        pod(phase="Pending", initContainerStatuses=[{"name": "destination-probe", **running}]),
        pod(
            phase="Succeeded",
            initContainerStatuses=[{"name": "destination-probe", **ended}],
            containerStatuses=[{"name": "trainer", **ended}],
        ),
    )
    kubectl.answer("finetunejobs.finetune.dev", output=job())
    for state in states:
        kubectl.answer("get", "pods", "-l", output={"items": [state]}, times=1)
    kubectl.answer("logs", "-c", "destination-probe", output=b"first\n")
    kubectl.answer("logs", "-c", "trainer", output=b"second\n")
    assert main(["logs", "numbers", "-f"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "first\nsecond\n"
    assert printed.err == "finetune: pod numbers-train-1-abc waits: 0/3 nodes\n", "said once"


def test_a_pod_that_is_gone_while_it_is_followed_falls_back_to_the_kept_log(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_cli.logs.command._POLL_SECONDS", 0)
    kubectl.answer("get", "pods", "-l", output={"items": [pod(phase="Pending")]}, times=1)
    serve(kubectl, kept=frame(b"kept\n", "train-1"))
    assert main(["logs", "numbers", "-f"]) == 0
    assert capsys.readouterr().out == "kept\n"


def test_a_user_who_may_create_no_pods_gets_the_exit_code_of_every_command(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.answer("create", error="Error from server (Forbidden): pods is forbidden\n")
    serve(kubectl)
    assert main(["logs", "numbers"]) == ExitCode.NO_PERMISSION
    assert "pods is forbidden" in capsys.readouterr().err
