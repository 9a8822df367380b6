from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode
from finetune_cli.jobs.retry import LONGEST_NAME, RETRY_OF, new_job, next_name

from tests.support.cli_jobs import failed, succeeded, training
from tests.support.kubectl_program import KubectlProgram


def created(cluster: KubectlProgram) -> list[tuple[dict[str, Any], bool]]:
    """The created jobs, and whether each was only checked."""
    calls = [call for call in cluster.calls if "create" in call["arguments"]]
    return [(json.loads(call["stdin"]), "--dry-run=server" in call["arguments"]) for call in calls]


def test_a_failed_job_is_checked_and_then_created_under_the_next_name(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(failed())
    assert main(["retry", "support-bot"]) == 0
    (checked, dry), (job, wet) = created(cluster)
    assert (dry, wet) == (True, False)
    assert checked == job
    assert job["metadata"]["name"] == "support-bot-2"
    assert capsys.readouterr().out == "finetunejob.finetune.dev/support-bot-2 created\n"


def test_the_new_job_publishes_where_the_old_one_would_have() -> None:
    job = new_job(failed(), "support-bot-2", [])
    assert job["spec"]["output"]["destination"]["persistentVolumeClaim"] == {
        "claimName": "models",
        "path": "support-bot",
    }


def test_labels_are_kept_without_those_by_which_gitops_tools_own_objects() -> None:
    old = failed()
    old["metadata"]["labels"] = {"team": "search", "app.kubernetes.io/instance": "models"}
    old["metadata"]["annotations"] = {
        "owner": "a",
        "argocd.argoproj.io/tracking-id": "x",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
        RETRY_OF: "older",
    }
    new = new_job(old, "support-bot-2", [])["metadata"]
    assert new["labels"] == {"team": "search"}
    assert new["annotations"] == {"owner": "a", RETRY_OF: "support-bot"}
    assert new["namespace"] == "team-a"
    assert "uid" not in new


def test_settings_change_the_new_job_only() -> None:
    old = failed()
    old["spec"]["suspend"] = True
    spec = new_job(old, "b", ["training.microBatchSize=1"])["spec"]
    assert spec["training"] == {"microBatchSize": 1}
    assert "suspend" not in spec
    assert "training" not in old["spec"]


@pytest.mark.parametrize(
    ("name", "taken", "expected"),
    [
        ("bot", set(), "bot-2"),
        ("bot", {"bot", "bot-2"}, "bot-3"),
        ("bot-2", {"bot-2"}, "bot-3"),
        ("llama-3", set(), "llama-4"),
        ("b" * 45, set(), "b" * 43 + "-2"),
        ("b" * 42 + "-cc", set(), "b" * 42 + "-2"),
    ],
)
def test_the_next_name_is_free_and_short_enough(name: str, taken: set[str], expected: str) -> None:
    assert next_name(name, taken) == expected
    assert len(expected) <= LONGEST_NAME


@pytest.mark.parametrize("job", [training(), succeeded()])
def test_only_a_failed_job_is_tried_again(
    job: dict[str, Any], cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(job)
    assert main(["retry", "support-bot"]) == ExitCode.USAGE
    assert "must have failed" in capsys.readouterr().err
    assert created(cluster) == []


def test_a_dry_run_prints_the_job_and_creates_nothing(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(failed())
    assert main(["retry", "support-bot", "--dry-run", "--as", "again"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["metadata"]["name"] == "again"
    assert [dry for _job, dry in created(cluster)] == [True]
