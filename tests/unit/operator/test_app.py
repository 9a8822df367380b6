from __future__ import annotations

import pytest
from finetune_operator.app import Operator
from finetune_operator.errors import SettingsError
from finetune_operator.settings import parse_settings


async def test_leader_election_needs_the_pods_name_and_namespace() -> None:
    settings = parse_settings('{"trainer": {"image": "i"}}')
    with pytest.raises(SettingsError, match="POD_NAME and POD_NAMESPACE"):
        Operator(settings, {"POD_NAME": "p"})
