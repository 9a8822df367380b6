from __future__ import annotations

from datetime import timedelta

from finetune_operator.api.spec import Lifecycle
from finetune_operator.lifecycle.retention import child_expiry, keeps_workspace

from tests.support.operator import NOW


def test_children_expire_by_their_outcome() -> None:
    lifecycle = Lifecycle.model_validate({"keepChildrenSeconds": {"success": 5, "failure": 60}})
    ended = {"completionTime": "2026-11-24T09:00:00Z"}
    assert child_expiry({**ended, "outcome": "Succeeded"}, lifecycle, NOW) == NOW + timedelta(seconds=5)
    assert child_expiry({**ended, "outcome": "Failed"}, lifecycle, NOW) == NOW + timedelta(seconds=60)
    assert child_expiry(None, lifecycle, NOW) == NOW
    longer = Lifecycle.model_validate({"keepChildrenSeconds": {"success": 5, "failure": 3600}})
    failed, succeeded = ({**ended, "outcome": outcome} for outcome in ("Failed", "Succeeded"))
    assert child_expiry(failed, longer, NOW, held=True) == NOW + timedelta(seconds=60)
    assert child_expiry(succeeded, longer, NOW, held=True) == NOW + timedelta(seconds=5)
    assert keeps_workspace(Lifecycle(), succeeded=False)
    assert not keeps_workspace(Lifecycle(), succeeded=True)
