from __future__ import annotations

import pytest
from finetune_operator.app import Operator
from finetune_operator.errors import SettingsError
from finetune_operator.settings import parse_settings


async def test_leader_election_needs_the_pods_name_and_namespace() -> None:
    settings = parse_settings('{"trainer": {"image": "i"}}')
    with pytest.raises(SettingsError, match="POD_NAME and POD_NAMESPACE"):
        Operator(settings, {"POD_NAME": "p"})


async def test_a_standby_is_live_and_ready() -> None:
    settings = parse_settings('{"trainer": {"image": "i"}}')
    operator = Operator(settings, {"POD_NAME": "p", "POD_NAMESPACE": "n"})
    assert operator._live() is None
    assert operator._ready() is None


async def test_a_leader_is_ready_only_after_its_store_is_filled() -> None:
    operator = Operator(
        parse_settings('{"trainer": {"image": "i"}, "leaderElection": {"enabled": false}}'), {}
    )
    operator._leading = True
    assert operator._ready() == "the store is still being filled"
    operator._seeded = True
    assert operator._ready() is None
