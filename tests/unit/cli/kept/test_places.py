from __future__ import annotations

from typing import Any

import pytest
from finetune_cli.kept.places import Place, find_place, why_missing
from finetune_cli.kept.reading import spec_of
from finetune_operator.contract.identity import JobIdentity
from finetune_operator.contract.mounts import pod_paths
from finetune_operator.contract.report_task import report_places

from tests.support.kept_jobs import job


def test_the_workspace_comes_before_the_destination() -> None:
    given = job()
    spec = spec_of(given)
    assert find_place(given, spec, {"models", "numbers-workspace"}) == Place(
        "numbers-workspace", "", "the workspace"
    )
    assert find_place(given, spec, {"models"}) == Place("models", "numbers", "the destination")
    assert find_place(given, spec, {"other"}) is None


def test_a_job_in_a_shared_workspace_has_its_own_folder() -> None:
    given = job(workspace={"existingClaim": "shared"})
    assert find_place(given, spec_of(given), {"shared"}) == Place("shared", "1-2-3", "the workspace")


def test_every_claim_among_several_destinations_is_tried() -> None:
    destinations = [
        {"name": "bucket", "s3": {"uri": "s3://bucket/numbers", "secretRef": {"name": "s3"}}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "models", "path": "a/b"}},
    ]
    given = job(output={"destinations": destinations})
    assert find_place(given, spec_of(given), {"models"}) == Place("models", "a/b", "the destination claim")


def test_a_missing_claim_is_named_with_the_places_outside_of_the_cluster() -> None:
    given = job()
    given["status"]["publications"] = [{"uri": "s3://bucket/numbers"}, {"uri": "pvc://team/models/numbers"}]
    text = why_missing(given, spec_of(given))
    assert "found none of numbers-workspace, models" in text
    assert "keepWorkspace" in text
    assert text.endswith("in the folder `report` of s3://bucket/numbers")


def ended(succeeded: str, copied: str | None, reports: str = "Destinations") -> dict[str, Any]:
    """A job with two claims among its destinations that has ended; `copied` is the status of ReportPublished."""
    destinations = [
        {"name": "first", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "second", "persistentVolumeClaim": {"claimName": "archive", "path": "a/b"}},
    ]
    found = job(output={"destinations": destinations, "reports": reports})
    found["metadata"]["uid"] = "6f1c0a52-6d0f-4f0e-9d5b-0d6f5a2f7b11"
    conditions = {"Succeeded": succeeded, **({"ReportPublished": copied} if copied else {})}
    found["status"]["conditions"] = [
        {"type": name, "status": status, "reason": "Any", "message": ""}
        for name, status in conditions.items()
    ]
    return found


@pytest.mark.parametrize("succeeded", ["True", "False"])
def test_a_report_that_was_copied_beside_a_destination_comes_before_it(succeeded: str) -> None:
    given = ended(succeeded, "True")
    spec = spec_of(given)
    assert find_place(given, spec, {"numbers-workspace", "models"}) == Place(
        "numbers-workspace", "", "the workspace"
    )
    for claim, folder, name in (("models", "numbers", "first"), ("archive", "a/b", "second")):
        assert find_place(given, spec, {claim}) == Place(
            claim, f"{folder}-report-6f1c0a52", f"the report beside the destination {name}"
        )


def test_the_place_is_the_one_that_the_operator_names_to_the_trainer() -> None:
    given = ended("False", "True")
    spec = spec_of(given)
    paths = pod_paths(JobIdentity("team", "numbers", given["metadata"]["uid"]), spec)
    named = report_places(spec, paths, given["metadata"]["uid"])
    for place, claim in zip(named, ("models", "archive"), strict=True):
        found = find_place(given, spec, {claim})
        assert found is not None
        assert place["uri"].endswith(f"/{claim}/{found.folder}")


@pytest.mark.parametrize(
    ("succeeded", "copied", "reports", "folder"),
    [
        ("False", "False", "Destinations", "numbers-report-6f1c0a52"),
        ("True", "False", "Destinations", "numbers"),
        ("True", "Unknown", "Destinations", "numbers"),
        ("False", None, "Destinations", "numbers"),
        ("False", "True", "Workspace", "numbers"),
    ],
)
def test_without_a_copy_the_report_is_looked_for_with_the_artifacts(
    succeeded: str, copied: str | None, reports: str, folder: str
) -> None:
    given = ended(succeeded, copied, reports)
    found = find_place(given, spec_of(given), {"models"})
    assert found is not None
    assert found.folder == folder


def test_a_missing_claim_says_how_the_copies_are_named() -> None:
    given = ended("False", "True")
    assert why_missing(given, spec_of(given)).endswith("in a place whose name ends with -report-6f1c0a52")
