from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.destinations.hub_account import only_reads, role_in


def account(token: Any) -> dict[str, Any]:
    return {
        "name": "Someone",
        "orgs": [{"name": "Team", "roleInOrg": "contributor"}, {"name": "old"}, "odd"],
        "auth": {"accessToken": token},
    }


def fine(scoped: Any, everywhere: Any = ()) -> dict[str, Any]:
    return {"role": "fineGrained", "fineGrained": {"global": list(everywhere), "scoped": scoped}}


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ({"role": "read"}, True),
        ({"role": "write"}, False),
        (fine([{"permissions": ["repo.content.read"]}]), True),
        (fine([]), True),
        (fine([{"permissions": ["repo.content.read", "repo.write"]}]), False),
        (fine([], ["post.write"]), False),
        (fine(None), False),
        (fine([{"permissions": None}, 3]), True),
        ({"role": "of a later hub"}, False),
        (None, False),
    ],
)
def test_only_a_token_without_any_permission_to_write_is_refused(token: Any, *, expected: bool) -> None:
    assert only_reads(account(token)) is expected


def test_an_answer_without_a_token_forbids_nothing() -> None:
    assert not only_reads({})


@pytest.mark.parametrize(
    ("namespace", "role"), [("someone", "admin"), ("team", "contributor"), ("OLD", "write"), ("nobody", None)]
)
def test_the_role_is_that_in_the_namespace_whatever_the_case(namespace: str, role: str | None) -> None:
    assert role_in(account({}), namespace) == role
    assert role_in({}, namespace) is None
