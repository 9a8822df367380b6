"""Builds the security contexts of a stage's pod: the restricted Pod Security level and additions that keep it."""

from __future__ import annotations

from typing import Any

from finetune_operator.api.pods import PodSecurity, Profile

USER_ID = 65532
"""User and group of the trainer image. It is not root, as the restricted Pod Security level requires."""


def pod_security(given: PodSecurity) -> dict[str, Any]:
    """The pod's `securityContext`. With `ids: Assigned` the cluster chooses the user and the groups."""
    context: dict[str, Any] = {"runAsNonRoot": True}
    own = None if given.ids == "Assigned" else USER_ID
    ids = {
        "runAsUser": given.run_as_user or own,
        "runAsGroup": given.run_as_group or own,
        "fsGroup": given.fs_group or own,
    }
    context |= {name: value for name, value in ids.items() if value is not None}
    # Changing the owner of every file of a large volume at each mount would take minutes.
    context["fsGroupChangePolicy"] = given.fs_group_change_policy or "OnRootMismatch"
    if given.supplemental_groups:
        context["supplementalGroups"] = list(given.supplemental_groups)
    if given.supplemental_groups_policy is not None:
        context["supplementalGroupsPolicy"] = given.supplemental_groups_policy
    context["seccompProfile"] = _seccomp(given)
    if given.app_armor_profile is not None:
        context["appArmorProfile"] = _profile(given.app_armor_profile)
    if given.se_linux_options is not None:
        context["seLinuxOptions"] = given.se_linux_options.model_dump(by_alias=True, exclude_none=True)
    return context


def container_security(given: PodSecurity) -> dict[str, Any]:
    """The container's `securityContext`. It repeats what some policies look for in the container only."""
    return {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": _seccomp(given),
    }


def _seccomp(given: PodSecurity) -> dict[str, str]:
    return {"type": "RuntimeDefault"} if given.seccomp_profile is None else _profile(given.seccomp_profile)


def _profile(given: Profile) -> dict[str, str]:
    found: dict[str, str] = given.model_dump(by_alias=True, exclude_none=True)
    return found
