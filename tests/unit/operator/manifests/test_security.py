from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.pods import PodSecurity
from finetune_operator.manifests.security import container_security, pod_security


def test_without_additions_the_image_decides_about_user_and_groups() -> None:
    found = pod_security(PodSecurity())
    assert found == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_assigned_ids_are_left_to_the_cluster() -> None:
    found = pod_security(PodSecurity(ids="Assigned"))
    assert found["runAsNonRoot"] is True
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & found.keys()


def test_given_values_replace_those_of_the_image() -> None:
    given = PodSecurity.model_validate(
        {
            "runAsUser": 1000650000,
            "fsGroup": 1000650001,
            "fsGroupChangePolicy": "Always",
            "supplementalGroups": [5000],
            "supplementalGroupsPolicy": "Strict",
            "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/train.json"},
            "appArmorProfile": {"type": "RuntimeDefault"},
            "seLinuxOptions": {"type": "container_t", "level": "s0:c26,c5"},
        }
    )
    local = {"type": "Localhost", "localhostProfile": "profiles/train.json"}
    assert pod_security(given) == {
        "runAsNonRoot": True,
        "runAsUser": 1000650000,
        "runAsGroup": 65532,
        "fsGroup": 1000650001,
        "fsGroupChangePolicy": "Always",
        "supplementalGroups": [5000],
        "supplementalGroupsPolicy": "Strict",
        "seccompProfile": local,
        "appArmorProfile": {"type": "RuntimeDefault"},
        "seLinuxOptions": {"type": "container_t", "level": "s0:c26,c5"},
    }
    assert container_security(given)["seccompProfile"] == local


@pytest.mark.parametrize("given", [{}, {"ids": "Assigned"}, {"runAsUser": 5, "supplementalGroups": [1]}])
def test_the_container_stays_confined_under_every_addition(given: dict[str, Any]) -> None:
    found = container_security(PodSecurity.model_validate(given))
    assert found == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
