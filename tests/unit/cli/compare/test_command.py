from __future__ import annotations

import json

import pytest
from finetune_cli.__main__ import main

from tests.support.cli_jobs import succeeded
from tests.support.kubectl_program import KubectlProgram


def test_jobs_of_two_namespaces_are_compared(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(succeeded("a"))
    cluster.put(succeeded("b"))
    assert main(["compare", "a", "team-b/b", "-n", "team-a", "-o", "json"]) == 0
    assert [job["name"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["a", "b"]
    assert [call["arguments"][0] for call in cluster.calls] == ["--namespace=team-a", "--namespace=team-b"]


def test_the_table_is_printed_by_default(cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.put(succeeded("a"))
    assert main(["compare", "a", "a"]) == 0
    assert "Spec: no difference" in capsys.readouterr().out
