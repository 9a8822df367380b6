from __future__ import annotations

import pytest
import yaml
from devcluster.layout import REPOSITORY
from finetune_operator.cluster.ended_jobs import ENDED, UNFINISHED, cannot_select
from finetune_operator.errors import ApiError


def test_the_selectors_are_opposites_of_a_field_that_the_crd_lets_select() -> None:
    (crd,) = yaml.safe_load_all((REPOSITORY / "crds" / "finetunejobs.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    (field,) = (each["jsonPath"].removeprefix(".") for each in version["selectableFields"])
    assert (f"{field}=", f"{field}!=") == (UNFINISHED, ENDED)


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (400, "field label not supported: status.completionTime", True),
        (400, "the limit must be a number", False),
        (403, "field label not supported: status.completionTime", False),
    ],
)
def test_an_older_crd_is_told_from_other_failures(status: int, message: str, *, expected: bool) -> None:
    assert cannot_select(ApiError(status, "BadRequest", message)) is expected
