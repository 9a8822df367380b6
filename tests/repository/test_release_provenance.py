"""The provenance of an image, as SLSA 1.0 describes it."""

from __future__ import annotations

import pytest

from scripts.release.provenance import NEEDED, predicate

GITHUB = {
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "org/finetune",
    "GITHUB_REF": "refs/tags/v1.2.3",
    "GITHUB_SHA": "c" * 40,
    "GITHUB_WORKFLOW_REF": "org/finetune/.github/workflows/release.yaml@refs/tags/v1.2.3",
    "GITHUB_RUN_ID": "17",
    "GITHUB_RUN_ATTEMPT": "2",
}
BASE = f"python:3.11.14-slim-bookworm@sha256:{'d' * 64}"
TIMES = {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:10:00Z"}


def test_it_names_the_commit_the_base_and_the_arguments() -> None:
    build = predicate(GITHUB, "operator/Dockerfile", BASE, ["VERSION=1.2.3", "X=a=b"], **TIMES)[
        "buildDefinition"
    ]
    source = "git+https://github.com/org/finetune@refs/tags/v1.2.3"
    assert build["externalParameters"] == {
        "source": source,
        "dockerfile": "operator/Dockerfile",
        "arguments": {"VERSION": "1.2.3", "X": "a=b"},
    }
    assert build["resolvedDependencies"] == [
        {"uri": source, "digest": {"gitCommit": "c" * 40}},
        {"uri": "docker://python:3.11.14-slim-bookworm", "digest": {"sha256": "d" * 64}},
    ]


def test_it_names_the_workflow_and_its_run() -> None:
    run = predicate(GITHUB, "operator/Dockerfile", BASE, [], **TIMES)["runDetails"]
    assert run["builder"] == {
        "id": "https://github.com/org/finetune/.github/workflows/release.yaml@refs/tags/v1.2.3"
    }
    assert run["metadata"] == {
        "invocationId": "https://github.com/org/finetune/actions/runs/17/attempts/2",
        "startedOn": TIMES["started"],
        "finishedOn": TIMES["finished"],
    }


@pytest.mark.parametrize("name", NEEDED)
def test_outside_of_a_workflow_there_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=f"found no {name}$"):
        predicate({**GITHUB, name: ""}, "operator/Dockerfile", BASE, [], **TIMES)


@pytest.mark.parametrize("base", ["python:3.11", "python@sha256:abc", "python:3.11@sha512:" + "d" * 64])
def test_a_base_without_a_digest_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match="NAME@sha256:DIGEST"):
        predicate(GITHUB, "operator/Dockerfile", base, [], **TIMES)
