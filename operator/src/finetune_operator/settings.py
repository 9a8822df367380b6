"""The operator's settings: one JSON file that the chart renders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from finetune_operator.api.network import DEFAULT_RETRY_SECONDS, Network
from finetune_operator.api.plan import Device
from finetune_operator.api.pods import PodTemplate, parse_pod_defaults
from finetune_operator.api.policy import Namespace, Policy, parse_policy
from finetune_operator.api.quantities import Quantity
from finetune_operator.api.stages import Stage
from finetune_operator.api.tracking import Tracking
from finetune_operator.contract.run_spec import Limits
from finetune_operator.errors import SettingsError
from finetune_operator.sizing.cost.prices import CostSettings
from finetune_operator.sizing.gpus.profiles import GpuProfile, LabelKey, check_distinct
from finetune_operator.sizing.memory.calibration import Calibration, parse_calibration
from finetune_operator.sizing.memory.stack import StackProfile, parse_stack

PATH_VARIABLE = "FINETUNE_OPERATOR_SETTINGS"
DEFAULT_PATH = "/etc/finetune-operator/settings.json"

POD_DEFAULTS: dict[str, Any] = {
    "prepare": {"nodeSelector": {"kubernetes.io/os": "linux"}},
    "merge": {"nodeSelector": {"kubernetes.io/os": "linux"}},
}
"""The chart's `trainer.podDefaults`. TRAIN runs where the GPUs are, so only the CPU stages must avoid Windows nodes."""

NcclVariable = Annotated[str, Field(pattern=r"^(TORCH_)?NCCL_[A-Z0-9_]+$", max_length=128)]
Port = Annotated[int, Field(ge=1024, le=65535)]


class _Settings(BaseModel):
    """Immutable, with camelCase names in the file. An unknown name is probably a typing error, so it is not accepted."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


def without_empty_members(value: Any) -> Any:
    """Drop the empty texts and objects that stand for missing values in the chart."""
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if item not in ("", {})}


class DefaultResources(_Settings):
    """CPU request and memory request (also the limit) if the FineTuneJob sets none; empty if they are computed."""

    cpu: Quantity | Literal[""] = ""
    memory: Quantity | Literal[""] = ""


@dataclass(frozen=True)
class StageDefault:
    """The same for one stage; None if the value is computed."""

    cpu: str | None
    memory: str | None


class StageDefaults(_Settings):
    """Default resources of each stage."""

    prepare: DefaultResources = DefaultResources()
    train: DefaultResources = DefaultResources()
    merge: DefaultResources = DefaultResources()

    def of(self, stage: Stage) -> StageDefault:
        """The default resources of one stage."""
        chosen = {Stage.PREPARE: self.prepare, Stage.TRAIN: self.train, Stage.MERGE: self.merge}[stage]
        return StageDefault(chosen.cpu or None, chosen.memory or None)


class LimitSettings(_Settings):
    """Limits on a trainer's downloads."""

    dataset_bytes: Annotated[int, Field(ge=1)] = 10 * 2**30
    download_seconds: Annotated[int, Field(ge=1)] = 3600
    allow_private_addresses: bool = False

    def to_limits(self, retry_seconds: int) -> Limits:
        """The same limits in the form of the run spec, with the seconds to wait for a server in an outage."""
        return Limits(self.dataset_bytes, self.download_seconds, self.allow_private_addresses, retry_seconds)


class TrainerSettings(_Settings):
    """Settings of the stages' pods."""

    image: Annotated[str, Field(min_length=1)]
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    device: Device = "cuda"
    telemetry_port: Annotated[int, Field(ge=1024, le=65000)] = 9500
    """The first of ten ports that a trainer tries."""
    hugging_face_endpoint: Annotated[str, Field(max_length=512, pattern=r"^(https?://[^\s?#@]+)?$")] = ""
    """Base URL of the hub that PREPARE uses; empty for the public one."""
    resources: StageDefaults = StageDefaults()
    limits: LimitSettings = LimitSettings()
    pod_defaults: dict[str, Any] = POD_DEFAULTS
    """Additions to the pods of all FineTuneJobs (docs/pods.md)."""
    network: Annotated[Network, BeforeValidator(without_empty_members)] = Network(
        retry_seconds=DEFAULT_RETRY_SECONDS
    )
    """Proxies, certificate authorities and the time to wait in an outage. A job's own settings take precedence."""
    tracking: Annotated[Tracking, BeforeValidator(without_empty_members)] = Tracking()
    """Trackers of the runs. A job's own trackers replace them."""
    nccl: dict[NcclVariable, str] = {}
    """Environment variables of TRAIN with several GPUs."""
    topology_keys: Annotated[tuple[LabelKey, ...], Field(max_length=8)] = ()
    """Labels of nodes whose values name domains in which GPUs are near each other, the closest first."""
    stack_profile: dict[str, Any] = {}
    """Properties of the image's software that determine memory; they replace the built-in ones (docs/stack-profile.md)."""

    @cached_property
    def defaults(self) -> PodTemplate:
        """The additions to all pods, parsed."""
        return parse_pod_defaults(self.pod_defaults)

    @model_validator(mode="after")
    def _defaults_are_usable(self) -> Self:
        """Parse the defaults now, so that an error stops the start and not the first job."""
        _ = self.defaults
        return self


class ClientSettings(_Settings):
    """Rate limit for calls to the API server: `qps` calls per second, and `burst` calls at once.

    The API server shares its time fairly between clients, so the defaults only stop an operator that has gone wild.
    """

    qps: Annotated[float, Field(gt=0)] = 500.0
    burst: Annotated[int, Field(ge=1)] = 1000


class MetricsSettings(_Settings):
    """Settings of /metrics. A job that has ended keeps its series for `retention_seconds`."""

    retention_seconds: Annotated[int, Field(ge=0, le=86400)] = 600

    @property
    def retention(self) -> timedelta:
        """Time for which a job that has ended keeps its series."""
        return timedelta(seconds=self.retention_seconds)


class LeaderElectionSettings(_Settings):
    """Leader election between replicas by a Lease."""

    enabled: bool = True
    lease_name: Annotated[str, Field(min_length=1, max_length=253)] = "finetune-operator"


class Settings(_Settings):
    """All settings of the administrator."""

    trainer: TrainerSettings
    watch_namespaces: tuple[Namespace, ...] = ()
    """The only namespaces to serve; empty for all."""
    workers: Annotated[int, Field(ge=1, le=64)] = 8
    client: ClientSettings = ClientSettings()
    resync_seconds: Annotated[int, Field(ge=10)] = 600
    progress_seconds: Annotated[int, Field(ge=1)] = 5
    start_seconds: Annotated[int, Field(ge=10)] = 300
    """Time for which a pod of TRAIN may have a GPU without running. Then the operator takes it back."""
    metrics_port: Port = 8080
    health_port: Port = 8081
    metrics: MetricsSettings = MetricsSettings()
    leader_election: LeaderElectionSettings = LeaderElectionSettings()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    gpu_profiles: tuple[GpuProfile, ...] = ()
    """GPUs that an autoscaler can start (docs/gpus.md)."""
    policy: dict[str, Any] = {"limits": {}, "exceptions": []}
    """Limits on what jobs may ask for (docs/tenancy.md)."""
    allow_time_slicing: bool = False
    job_sets: bool = False
    """TRAIN with several pods is a JobSet, if the cluster has JobSet. Otherwise it is a batch/v1 Job as ever."""
    calibration: dict[str, Any] = {}
    """Constants of the memory estimate, corrected by measured runs; empty for the built-in ones."""
    cost: CostSettings = CostSettings()
    """Prices and measured speeds of GPUs, and the labels for showback (docs/cost.md)."""

    @model_validator(mode="after")
    def _sizing_is_usable(self) -> Self:
        """Parse the sizing settings now, so that an error stops the start and not the first job."""
        check_distinct(self.gpu_profiles)
        _ = self.stack, self.fitted_calibration, self.job_policy
        return self

    @cached_property
    def job_policy(self) -> Policy:
        """The policy, parsed."""
        return parse_policy(self.policy)

    @cached_property
    def stack(self) -> StackProfile:
        """The stack profile of the trainer's image."""
        return parse_stack(self.trainer.stack_profile)

    @cached_property
    def fitted_calibration(self) -> Calibration:
        """The calibration, parsed."""
        return parse_calibration(self.calibration)


def parse_settings(content: str | bytes) -> Settings:
    """Parse the content of the settings file; raises SettingsError that names each invalid field."""
    try:
        return Settings.model_validate(json.loads(content))
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"the settings must be JSON, found {error}; use the settings file of the chart"
        ) from error
    except ValidationError as error:
        details = [
            _describe(detail["loc"], detail["msg"])
            for detail in error.errors(include_url=False, include_context=False)
        ]
        raise SettingsError(
            "the settings must follow values.yaml of the chart, found " + "; ".join(details)
        ) from error


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Read the file that FINETUNE_OPERATOR_SETTINGS names; raises SettingsError if it is unusable."""
    path = Path(environment.get(PATH_VARIABLE, DEFAULT_PATH))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{PATH_VARIABLE} must name a readable settings file, found {path} ({error.strerror}); "
            "the chart mounts one"
        ) from error
    return parse_settings(content)


def _describe(location: tuple[int | str, ...], message: str) -> str:
    """One error of pydantic with its field; errors that concern several fields name them in their message."""
    field = ".".join(str(step) for step in location)
    text = message.removeprefix("Value error, ")
    return f"{field}: {text}" if field else text
