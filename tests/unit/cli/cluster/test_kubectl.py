from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from finetune_cli.cluster.kubectl import (
    ApiUnavailableError,
    ClusterError,
    ExistsError,
    ForbiddenError,
    Kubectl,
    NotFoundError,
    RejectedError,
    error_of,
)


@pytest.mark.parametrize(
    ("message", "kind", "remedy"),
    [
        ('Error from server (NotFound): finetunejobs.finetune.dev "a" not found', NotFoundError, ""),
        (
            'Error from server (Forbidden): finetunejobs.finetune.dev is forbidden: User "x" cannot list resource',
            ForbiddenError,
            "ask the cluster's administrator",
        ),
        ("error: You must be logged in to the server (Unauthorized)", ForbiddenError, "log in"),
        ('error: the server doesn\'t have a resource type "finetunejobs"', ClusterError, "install the chart"),
        (
            'error: resource mapping not found: no matches for kind "FineTuneJob" in version "finetune.dev/v1alpha1"',
            ClusterError,
            "install the chart",
        ),
        (
            "Unable to connect to the server: dial tcp 10.0.0.1:443: i/o timeout",
            ApiUnavailableError,
            "--context",
        ),
        (
            "The connection to the server localhost:8080 was refused - did you",
            ApiUnavailableError,
            "KUBECONFIG",
        ),
        ("Error from server (ServiceUnavailable): apiserver not ready", ApiUnavailableError, ""),
        ("Error from server (TooManyRequests): too many requests", ApiUnavailableError, ""),
        ('The FineTuneJob "a" is invalid: spec.training: must give epochs', RejectedError, ""),
        (
            "Error from server (Forbidden): ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
            RejectedError,
            "",
        ),
        (
            'Error from server (BadRequest): strict decoding error: unknown field "spec.sede"',
            RejectedError,
            "",
        ),
        (
            'error: the namespace from the provided object "a" does not match the namespace "b".',
            RejectedError,
            "",
        ),
        ("Error from server (AlreadyExists): already exists", ExistsError, ""),
        ('error: context "x" does not exist', ClusterError, "--context"),
        (
            "Error in configuration: context was not found for specified context: x",
            ClusterError,
            "--kubeconfig",
        ),
        ("something new", ClusterError, ""),
        ("", ClusterError, "printed no error"),
    ],
)
def test_kubectls_messages_become_errors_with_a_remedy(
    message: str, kind: type[ClusterError], remedy: str
) -> None:
    error = error_of(message)
    assert type(error) is kind
    assert remedy in str(error)


def test_a_rejection_has_every_wrong_field_and_no_warning() -> None:
    error = error_of(
        'Warning: old\nThe FineTuneJob "a" is invalid: \n* spec.training.seed: must be at least 0\n* spec.model: Required\n'
    )
    assert isinstance(error, RejectedError)
    assert str(error) == (
        'The FineTuneJob "a" is invalid: * spec.training.seed: must be at least 0 * spec.model: Required'
    )


def test_only_given_options_are_passed() -> None:
    assert Kubectl().command("get") == ["kubectl", "get"]
    assert Kubectl("team", "staging", "/k").command("get") == [
        *("kubectl", "--kubeconfig=/k", "--context=staging", "--namespace=team", "get"),
    ]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubectl"
    path.write_text("#!/bin/sh\ncat\n", "utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return path


def test_standard_input_is_passed_and_output_returned(program: Path) -> None:
    assert program.exists()
    assert Kubectl().run("create", stdin="text é") == "text é"
    assert Kubectl().json("create", stdin='{"a": 1}') == {"a": 1}


def test_output_that_is_no_json_is_an_error(program: Path) -> None:
    program.write_text("#!/bin/sh\necho nonsense\n", "utf-8")
    with pytest.raises(ClusterError, match="must print JSON, found 'nonsense"):
        Kubectl().json("get")


def test_a_kubectl_that_hangs_counts_as_an_outage(program: Path) -> None:
    program.write_text("#!/bin/sh\nexec sleep 60\n", "utf-8")
    with pytest.raises(ApiUnavailableError, match="must respond within"):
        Kubectl().run("get", seconds=0.2)


def test_a_missing_kubectl_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="kubectl must be on PATH"):
        Kubectl().run("get")


def test_the_namespace_is_replaced_and_the_rest_stays() -> None:
    assert Kubectl("team", "staging", "/k").within("other") == Kubectl("other", "staging", "/k")


def test_bytes_are_returned_as_they_are(program: Path) -> None:
    program.write_text("#!/bin/sh\nprintf 'a\\377\\r\\n'\n", "utf-8")
    assert Kubectl().output("logs") == b"a\xff\r\n"


def test_a_stream_is_read_while_kubectl_runs_and_fails_at_its_end(program: Path) -> None:
    program.write_text("#!/bin/sh\necho line\necho 'Error: container is gone' >&2\nexit 1\n", "utf-8")
    lines: list[bytes] = []
    with pytest.raises(ClusterError, match="container is gone"), Kubectl().stream("logs") as output:
        lines += output
    assert lines == [b"line\n"]


def test_what_the_reader_leaves_and_many_warnings_do_not_block_kubectl(program: Path) -> None:
    flood = "head -c 300000 /dev/zero"
    program.write_text(f"#!/bin/sh\n{flood} >&2\necho line\n{flood}\n", "utf-8")
    with Kubectl().stream("exec") as output:
        assert output.readline() == b"line\n"


def test_kubectl_ends_with_the_reader(program: Path) -> None:
    program.write_text("#!/bin/sh\necho line\nexec sleep 600\n", "utf-8")
    with contextlib.suppress(KeyError), Kubectl().stream("logs", "--follow") as output:
        assert output.readline() == b"line\n"
        raise KeyError


def test_a_missing_kubectl_cannot_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="kubectl must be on PATH"), Kubectl().stream("logs"):
        raise AssertionError


def test_the_advice_to_turn_validation_off_is_not_repeated() -> None:
    error = error_of(
        'error: error validating "STDIN": dial tcp 127.0.0.1:8080: connect: connection refused; '
        "if you choose to ignore these errors, turn validation off with --validate=false\n"
    )
    assert isinstance(error, ApiUnavailableError)
    assert "connection refused; check the cluster" in str(error)
