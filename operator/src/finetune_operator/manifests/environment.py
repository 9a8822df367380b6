"""Environment variables of the containers: which one gets which Secret, proxy and authority."""

from __future__ import annotations

from typing import Any

from finetune_operator.api.plan import ONE_GPU, Layout
from finetune_operator.api.sources import KeyRef
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import POD_ADDRESS_VARIABLE, STEP_VARIABLE, Stage
from finetune_operator.contract.credentials import (
    SecretPrefix,
    destination_secret_prefixes,
    destination_secret_variables,
    secret_prefixes,
    secret_variables,
)
from finetune_operator.contract.network import (
    CA_BUNDLE_VARIABLE,
    hub_variables,
    mounted_bundles,
    network_variables,
)
from finetune_operator.contract.tracking import Trackers, tracking_secret_prefixes
from finetune_operator.manifests.volumes import Volumes
from finetune_operator.settings import TrainerSettings


def stage_environment(
    spec: FineTuneJobSpec,
    stage: Stage,
    trainer: TrainerSettings,
    volumes: Volumes,
    layout: Layout = ONE_GPU,
) -> dict[str, Any]:
    """The container's `env` and, for whole Secrets, `envFrom`. Of the stages, only PREPARE gets secrets."""
    variables = _common_variables()
    if stage is Stage.TRAIN:
        # Without it, rows of many lengths fragment the GPU's memory until no large tensor fits.
        variables.append({"name": "PYTORCH_ALLOC_CONF", "value": "expandable_segments:True"})
        variables += _ranks(trainer, layout)
    else:
        # CUDA images set `all`, so the NVIDIA runtime would give every GPU to a pod that requests none.
        variables.append(_NO_GPU)
    if stage is Stage.MERGE:
        # The manifest of the artifacts names it.
        variables.append({"name": "FINETUNE_IMAGE", "value": trainer.image})
    variables += volumes.variables
    variables += _network(spec, trainer, downloads=stage is Stage.PREPARE)
    environment: dict[str, Any] = {"env": variables}
    if stage is Stage.PREPARE:
        variables += _hubs(spec, trainer)
        variables += [_secret_variable(item.variable, item.reference) for item in secret_variables(spec)]
        if secrets := _whole_secrets(secret_prefixes(spec)):
            environment["envFrom"] = secrets
    return environment


def step_environment(
    spec: FineTuneJobSpec, trainer: TrainerSettings, trackers: Trackers, step: str
) -> dict[str, Any]:
    """`env` and `envFrom` of a container that tries or fills destinations: their credentials and no others.

    The ones after MERGE and after the end of a job also tell the trackers of the run, and have their credentials. Without
    copies of the report, the latter has those alone.
    """
    variables = [*_common_variables(), _NO_GPU, {"name": STEP_VARIABLE, "value": step}]
    variables += _network(spec, trainer, downloads=True)
    variables += _hubs(spec, trainer)
    secrets: list[dict[str, Any]] = []
    if step != "Report" or spec.output.reports is not None:
        tokens = destination_secret_variables(spec)
        variables += [_secret_variable(item.variable, item.reference) for item in tokens]
        secrets += _whole_secrets(destination_secret_prefixes(spec))
    if step in {"Publish", "Report"}:
        # A pod would wait for a Secret that is required, but no run waits for its tracker.
        secrets += _whole_secrets(tracking_secret_prefixes(trackers), optional=True)
    return {"env": variables, **({"envFrom": secrets} if secrets else {})}


def _common_variables() -> list[dict[str, Any]]:
    return [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own emptyDir
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]


_NCCL = {"NCCL_DEBUG": "WARN"}
"""Without it, NCCL does not log why it fails."""


def _ranks(trainer: TrainerSettings, layout: Layout) -> list[dict[str, Any]]:
    """The variables of several GPUs: the administrator's for NCCL and, of several pods, the address of each."""
    if layout.gpus == 1:
        return []
    found: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in sorted((_NCCL | trainer.nccl).items())
    ]
    if layout.nodes > 1:
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        found.append({"name": POD_ADDRESS_VARIABLE, "valueFrom": address})
    return found


_NO_GPU = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}


def _whole_secrets(secrets: list[SecretPrefix], *, optional: bool = False) -> list[dict[str, Any]]:
    """The entries of `envFrom`."""
    extra = {"optional": True} if optional else {}
    return [{"prefix": item.prefix, "secretRef": {"name": item.secret, **extra}} for item in secrets]


def _network(spec: FineTuneJobSpec, trainer: TrainerSettings, *, downloads: bool) -> list[dict[str, Any]]:
    """Proxies and CA bundles. A proxy with a password is only for the containers that need the network."""
    found: list[dict[str, Any]] = []
    for variable in network_variables(spec.network, trainer.network):
        if isinstance(variable.value, str):
            found.append({"name": variable.name, "value": variable.value})
        elif downloads:
            found.append(_secret_variable(variable.name, variable.value))
    bundles = mounted_bundles(spec.network, trainer.network)
    if bundles:
        paths = ":".join(bundle.path for bundle in bundles)
        found.append({"name": CA_BUNDLE_VARIABLE, "value": paths})
    return found


def _hubs(spec: FineTuneJobSpec, trainer: TrainerSettings) -> list[dict[str, Any]]:
    found = hub_variables(spec.network, trainer.hugging_face_endpoint)
    return [{"name": each.name, "value": each.value} for each in found]


def _secret_variable(name: str, reference: KeyRef) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": reference.name, "key": reference.key}}}
