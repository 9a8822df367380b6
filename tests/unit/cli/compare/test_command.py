from __future__ import annotations

import json

import pytest
from finetune_cli.__main__ import main

from tests.support.cli_jobs import succeeded
from tests.support.kubectl_program import KubectlProgram


def test_jobs_of_two_namespaces_are_compared(
    kubectl: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.put(succeeded("a"))
    kubectl.put(succeeded("b"))
    assert main(["compare", "a", "team-b/b", "-n", "team-a", "-o", "json"]) == 0
    assert [job["name"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["a", "b"]
    assert [call["arguments"][0] for call in kubectl.calls] == ["--namespace=team-a", "--namespace=team-b"]


def test_the_table_is_printed_by_default(kubectl: KubectlProgram, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl.put(succeeded("a"))
    assert main(["compare", "a", "a"]) == 0
    assert "Spec: no difference" in capsys.readouterr().out
