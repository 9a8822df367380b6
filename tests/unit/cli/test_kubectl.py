from __future__ import annotations

from pathlib import Path

import pytest
from finetune_cli.cluster.kubectl import Kubectl
from finetune_cli.errors import UsageError
from finetune_cli.kubectl import kubectl_get


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl on PATH that prints its arguments as a JSON list."""
    path = tmp_path / "kubectl"
    path.write_text('#!/bin/sh\nprintf \'["%s"]\' "$*"\n', "utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return path


@pytest.mark.parametrize(
    ("context", "arguments"),
    [(None, "get nodes -A --output=json"), ("staging", "--context=staging get nodes -A --output=json")],
)
def test_the_context_and_the_arguments_are_passed(program: Path, context: str | None, arguments: str) -> None:
    assert program.exists()
    assert kubectl_get(["nodes", "-A"], Kubectl(context=context), "remedy") == [
        f"{arguments} --request-timeout=30s"
    ]


def test_the_last_line_of_kubectls_error_is_shown(program: Path) -> None:
    program.write_text("#!/bin/sh\necho first >&2\necho 'no such host' >&2\nexit 1\n", "utf-8")
    with pytest.raises(UsageError, match=r"kubectl get nodes failed: no such host.*; use --nodes"):
        kubectl_get(["nodes"], Kubectl(), "use --nodes")


def test_a_failure_without_a_message_is_an_error_too(program: Path) -> None:
    program.write_text("#!/bin/sh\nexit 1\n", "utf-8")
    with pytest.raises(UsageError, match="printed no error"):
        kubectl_get(["nodes"], Kubectl(), "use --nodes")


def test_output_that_is_not_json_is_an_error(program: Path) -> None:
    program.write_text("#!/bin/sh\necho nonsense\n", "utf-8")
    with pytest.raises(UsageError, match="must print JSON"):
        kubectl_get(["nodes"], Kubectl(), "use --nodes")


def test_a_missing_kubectl_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"kubectl must be on PATH: .*; use --nodes"):
        kubectl_get(["nodes"], Kubectl(), "use --nodes")
