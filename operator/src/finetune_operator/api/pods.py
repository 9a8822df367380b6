"""Settings of the stages' pods, which the chart gives as defaults and a FineTuneJob as additions.

They only add to a pod. The GPU's affinity, the mounts and the restricted security level are not among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from finetune_operator.api.names import AnnotationKey, AnnotationValue, LabelKey, LabelValue, ObjectName
from finetune_operator.api.quantities import ByteQuantity, CpuQuantity, parse_quantity
from finetune_operator.api.sources import SpecValue
from finetune_operator.api.stages import GROUP, WORK_STAGES, Stage

AS_REQUESTED = "Request"
"""A limit that is equal to the request."""
SE_LINUX_TYPES = r"^container(_init|_kvm|_engine)?_t$"
"""The types of the restricted Pod Security level. The CRD and the chart have the same pattern."""
_RESERVED_PREFIXES = (f"{GROUP}/", "batch.kubernetes.io/")
_RESERVED_LABELS = frozenset(
    {
        *(f"app.kubernetes.io/{name}" for name in ("name", "component", "managed-by")),
        # Labels of the Job controller, in the spelling of older versions of Kubernetes.
        "job-name",
        "controller-uid",
    }
)
_QUEUE_PREFIX = "kueue.x-k8s.io/"
_MAXIMUM_ID = 2**31 - 1


class PodDefaultsError(ValueError):
    """Pod defaults that cannot be used. The message names each wrong member."""


UserId = Annotated[int, Field(ge=1, le=_MAXIMUM_ID)]
"""A user or group, never root."""


def _check_limit(value: str) -> str:
    """Accept an amount of more than nothing."""
    if parse_quantity(value) <= 0:
        raise ValueError("must be more than 0")
    return value


Bytes = Annotated[ByteQuantity, AfterValidator(_check_limit)]
CpuLimit = Literal["Request"] | Annotated[CpuQuantity, AfterValidator(_check_limit)]
BytesLimit = Literal["Request"] | Bytes
"""A limit as a quantity, or equal to the request."""


class Toleration(SpecValue):
    """A toleration, as in core/v1."""

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class NodeRequirement(SpecValue):
    """One requirement on a node's label, as in the node affinity of core/v1."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32)] = ()

    @model_validator(mode="after")
    def _values_suit_the_operator(self) -> Self:
        count = len(self.values)
        if self.operator in {"In", "NotIn"} and count == 0:
            raise ValueError("must have values with the operator In or NotIn")
        if self.operator in {"Exists", "DoesNotExist"} and count > 0:
            raise ValueError("must have no values with the operator Exists or DoesNotExist")
        if self.operator in {"Gt", "Lt"} and (
            count != 1 or re.fullmatch("[0-9]{1,18}", self.values[0]) is None
        ):
            raise ValueError(
                "must have one whole number of at most 18 digits as values with the operator Gt or Lt"
            )
        return self


class NodeTerm(SpecValue):
    """Requirements that must all hold."""

    match_expressions: Annotated[tuple[NodeRequirement, ...], Field(min_length=1, max_length=8)]


class Profile(SpecValue):
    """A seccomp or AppArmor profile: that of the container runtime, or one that is on the nodes."""

    type: Literal["RuntimeDefault", "Localhost"]
    localhost_profile: Annotated[str, Field(min_length=1, max_length=512)] | None = None

    @model_validator(mode="after")
    def _name_suits_the_type(self) -> Self:
        if (self.type == "Localhost") != (self.localhost_profile is not None):
            raise ValueError("must have localhostProfile exactly if the type is Localhost")
        parts = (self.localhost_profile or "profile").split("/")
        if any(part in {"", ".", ".."} for part in parts):
            raise ValueError("localhostProfile must be a relative path without empty, '.' or '..' segments")
        return self


class SeLinuxOptions(SpecValue):
    """The parts of an SELinux label that the restricted Pod Security level allows."""

    type: Annotated[str, Field(pattern=SE_LINUX_TYPES)] | None = None
    level: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class PodSecurity(SpecValue):
    """Additions to the pods' security context. None of them can weaken it.

    With `ids: Assigned`, the pod names no user and no groups, and the cluster assigns them from the namespace's range.
    """

    ids: Literal["Fixed", "Assigned"] | None = None
    run_as_user: UserId | None = None
    run_as_group: UserId | None = None
    fs_group: UserId | None = None
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] | None = None
    supplemental_groups: Annotated[tuple[UserId, ...], Field(max_length=16)] = ()
    supplemental_groups_policy: Literal["Merge", "Strict"] | None = None
    seccomp_profile: Profile | None = None
    app_armor_profile: Profile | None = None
    se_linux_options: SeLinuxOptions | None = None

    @model_validator(mode="after")
    def _assigned_ids_are_not_given(self) -> Self:
        if self.ids == "Assigned" and self.has_ids:
            raise ValueError("must have no runAsUser, runAsGroup and fsGroup with ids: Assigned")
        return self

    @property
    def has_ids(self) -> bool:
        """True if a user or group is given."""
        return any(value is not None for value in (self.run_as_user, self.run_as_group, self.fs_group))


class StagePod(SpecValue):
    """Additions to a pod. In a block of one stage they apply to that stage only."""

    labels: dict[LabelKey, LabelValue] = {}  # noqa: RUF012 -- pydantic copies defaults
    annotations: dict[AnnotationKey, AnnotationValue] = {}  # noqa: RUF012 -- pydantic copies defaults
    node_selector: dict[LabelKey, LabelValue] = {}  # noqa: RUF012 -- pydantic copies defaults
    node_selector_terms: Annotated[tuple[NodeTerm, ...], Field(max_length=4)] = ()
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    runtime_class_name: ObjectName | None = None
    priority_class_name: ObjectName | None = None
    scheduler_name: ObjectName | None = None
    cpu_limit: CpuLimit | None = None
    ephemeral_storage: Bytes | None = None
    ephemeral_storage_limit: BytesLimit | None = None


class ImagePullSecret(SpecValue):
    """Name of a Secret with registry credentials."""

    name: ObjectName


class PodTemplate(StagePod):
    """Additions to the pod of every stage, and further ones for single stages.

    `object_labels` and `object_annotations` are those of the Jobs and of the workspace's claim.
    """

    service_account_name: ObjectName | None = None
    image_pull_secrets: Annotated[tuple[ImagePullSecret, ...], Field(max_length=8)] = ()
    object_labels: dict[LabelKey, LabelValue] = {}  # noqa: RUF012 -- pydantic copies defaults
    object_annotations: dict[AnnotationKey, AnnotationValue] = {}  # noqa: RUF012 -- pydantic copies defaults
    security_context: PodSecurity = PodSecurity()
    prepare: StagePod = StagePod()
    train: StagePod = StagePod()
    merge: StagePod = StagePod()

    def of(self, stage: Stage) -> StagePod:
        """The additions for one stage."""
        return {Stage.PREPARE: self.prepare, Stage.TRAIN: self.train, Stage.MERGE: self.merge}[stage]


def parse_pod_defaults(document: Mapping[str, Any]) -> PodTemplate:
    """Parse the chart's `trainer.podDefaults`; an empty text means that a value is not set.

    Raises PodDefaultsError that names each wrong member.
    """
    try:
        template = PodTemplate.model_validate(_without_empty(document))
    except ValidationError as error:
        details = [
            f"podDefaults.{'.'.join(str(step) for step in detail['loc'])}: {detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors(include_url=False, include_context=False, include_input=False)[:5]
        ]
        raise PodDefaultsError("; ".join(details)) from error
    found = next(reserved_keys(template), None)
    if found is not None:
        field, key = found
        raise PodDefaultsError(f"podDefaults.{field} must not use keys {why_reserved(key)}, found {key!r}")
    return template


def reserved_keys(template: PodTemplate) -> Iterator[tuple[str, str]]:
    """Yield every label and annotation key that belongs to the operator or to Kubernetes, with its field."""
    blocks: tuple[tuple[str, StagePod], ...] = (
        ("", template),
        *((f"{stage.slug}.", template.of(stage)) for stage in WORK_STAGES),
    )
    maps = [
        (f"{prefix}{field}", keys)
        for prefix, block in blocks
        for field, keys in (("labels", block.labels), ("annotations", block.annotations))
    ]
    maps += [("objectLabels", template.object_labels), ("objectAnnotations", template.object_annotations)]
    for field, keys in maps:
        for key in keys:
            queued = key.startswith(_QUEUE_PREFIX) and field.startswith("object")
            if key.startswith(_RESERVED_PREFIXES) or key in _RESERVED_LABELS or queued:
                yield field, key


def why_reserved(key: str) -> str:
    """Say whom a reserved key belongs to, as the end of "keys that ..."."""
    if key.startswith(_QUEUE_PREFIX):
        return "of Kueue, because it would suspend the Jobs that the operator starts"
    return "that belong to the operator"


def _without_empty(value: Any) -> Any:
    """Return `value` without members that are an empty text or null."""
    if not isinstance(value, Mapping):
        return value
    return {name: _without_empty(item) for name, item in value.items() if item not in ("", None)}
