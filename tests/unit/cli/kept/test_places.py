from __future__ import annotations

from finetune_cli.kept.places import Place, find_place, why_missing
from finetune_cli.kept.reading import spec_of

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
