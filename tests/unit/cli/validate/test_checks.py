from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_cli.cluster.client import Client
from finetune_cli.cluster.kubectl import ApiUnavailableError, ForbiddenError
from finetune_cli.errors import UsageError
from finetune_cli.manifests import Manifests
from finetune_cli.run.local import LocalFolders
from finetune_cli.validate.checks import check_rows, check_server, check_spec

from tests.support.cli_jobs import cli_job
from tests.support.kubectl_program import KubectlProgram


def manifests(spec: dict[str, Any] | None = None) -> Manifests:
    job = cli_job(spec=spec)
    return Manifests("team-a", "support-bot", job["spec"], {}, {}, job)


def rows(tmp_path: Path, **options: Any) -> tuple[str, str]:
    _checked, spec = check_spec(manifests())
    assert spec is not None
    folders = LocalFolders(tmp_path, {}, tmp_path)
    options = {"data": None, "tokenizer": None, "count": 10, "installed": lambda: True, **options}
    found = check_rows(manifests(), spec, folders, **options)
    return found.status, found.message


def test_the_operators_rules_check_the_spec() -> None:
    assert check_spec(manifests())[0].status == "Passed"
    wrong, spec = check_spec(manifests({"training": {"epochs": 1, "maximumSteps": 2}}))
    assert (wrong.status, spec) == ("Failed", None)
    assert "epochs" in wrong.message


@pytest.mark.parametrize(
    "message",
    [
        'The FineTuneJob "a" is invalid: spec.training: Invalid value: must give epochs or maximumSteps, not both',
        "error: ValidatingAdmissionPolicy 'finetune' with binding 'finetune' denied request: too many GPUs",
        'Error from server (NotFound): namespaces "team-a" not found',
    ],
)
def test_a_rejection_by_the_api_server_is_a_finding(cluster: KubectlProgram, message: str) -> None:
    cluster.fail(message)
    found = check_server(Client(), cli_job())
    assert found.status == "Failed"
    assert found.message in message


def test_the_api_server_stores_nothing(cluster: KubectlProgram) -> None:
    assert check_server(Client(), cli_job()).status == "Passed"
    assert {"--dry-run=server", "--server-side"} <= set(cluster.calls[0]["arguments"])


@pytest.mark.parametrize(
    ("message", "kind", "remedy"),
    [
        ("Unable to connect to the server: EOF", ApiUnavailableError, "--offline checks without a cluster"),
        ("Error from server (Forbidden): no", ForbiddenError, "ask the cluster's administrator"),
    ],
)
def test_a_request_that_fails_is_no_finding(
    cluster: KubectlProgram, message: str, kind: type[Exception], remedy: str
) -> None:
    cluster.fail(message)
    with pytest.raises(kind, match=remedy):
        check_server(Client(), cli_job())


def test_rows_are_skipped_with_the_missing_part(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    assert rows(tmp_path) == ("Skipped", "pass --tokenizer FOLDER, a folder with the model's tokenizer")
    given = {"tokenizer": tmp_path / "tokenizer"}
    assert rows(tmp_path, **given) == ("Skipped", "pass --data FILE, a file with rows of the dataset")
    status, message = rows(tmp_path, **given, installed=lambda: False)
    assert (status, "the trainer must be installed" in message) == ("Skipped", True)


def test_a_data_file_that_is_missing_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a file, found none at"):
        rows(tmp_path, tokenizer=tmp_path, data=tmp_path / "absent.jsonl")
