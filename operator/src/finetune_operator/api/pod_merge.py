"""Merges the chart's pod defaults with a FineTuneJob's additions, by the rules of docs/pods.md.

From the weakest to the strongest: `trainer.podDefaults`, its block of the stage, `podTemplate`, `resources`, and
`podTemplate`'s block of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from finetune_operator.api.pods import NodeTerm, PodSecurity, PodTemplate, StagePod, Toleration
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage

NO_DEFAULTS = PodTemplate()
"""The defaults where no chart is known, as on the command line."""


@dataclass(frozen=True)
class SelectedLabel:
    """A label that a pod's node must have, with the field that asks for it."""

    key: str
    value: str
    field: str


@dataclass(frozen=True)
class SelectedTerms:
    """Terms of which a pod's node must satisfy one, with the field that asks for them."""

    terms: tuple[NodeTerm, ...]
    field: str


@dataclass(frozen=True)
class NodeRules:
    """What a pod asks of its node, apart from its resources."""

    labels: tuple[SelectedLabel, ...] = ()
    terms: tuple[SelectedTerms, ...] = ()
    """Each of them must hold."""
    tolerations: tuple[Toleration, ...] = ()

    @property
    def node_selector(self) -> dict[str, str]:
        """The value of `spec.nodeSelector`."""
        return {label.key: label.value for label in self.labels}


@dataclass(frozen=True)
class PodSettings:
    """The merged settings of one stage's pod."""

    rules: NodeRules
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    object_labels: Mapping[str, str]
    object_annotations: Mapping[str, str]
    security: PodSecurity
    image_pull_secrets: tuple[str, ...]
    service_account_name: str | None
    runtime_class_name: str | None
    priority_class_name: str | None
    scheduler_name: str | None
    cpu_limit: str | None
    ephemeral_storage: str | None
    ephemeral_storage_limit: str | None


def merge_pods(defaults: PodTemplate, spec: FineTuneJobSpec, stage: Stage) -> PodSettings:
    """Merge the chart's `defaults` with the additions of `spec` for one stage."""
    template = spec.pod_template
    blocks = _blocks(defaults, spec, stage)

    def strongest(value_of: Callable[[StagePod], str | None]) -> str | None:
        return next((value for _, block in reversed(blocks) if (value := value_of(block)) is not None), None)

    return PodSettings(
        rules=_rules(blocks),
        labels=_merged(block.labels for _, block in blocks),
        annotations=_merged(block.annotations for _, block in blocks),
        object_labels={**defaults.object_labels, **template.object_labels},
        object_annotations={**defaults.object_annotations, **template.object_annotations},
        security=_security(defaults.security_context, template.security_context),
        image_pull_secrets=tuple(
            dict.fromkeys(
                secret.name for secret in (*defaults.image_pull_secrets, *template.image_pull_secrets)
            )
        ),
        service_account_name=template.service_account_name or defaults.service_account_name,
        runtime_class_name=strongest(lambda block: block.runtime_class_name),
        priority_class_name=strongest(lambda block: block.priority_class_name),
        scheduler_name=strongest(lambda block: block.scheduler_name),
        cpu_limit=strongest(lambda block: block.cpu_limit),
        ephemeral_storage=strongest(lambda block: block.ephemeral_storage),
        ephemeral_storage_limit=strongest(lambda block: block.ephemeral_storage_limit),
    )


def node_rules(defaults: PodTemplate, spec: FineTuneJobSpec, stage: Stage) -> NodeRules:
    """The merged rules about the node of one stage's pod."""
    return _rules(_blocks(defaults, spec, stage))


def _blocks(defaults: PodTemplate, spec: FineTuneJobSpec, stage: Stage) -> Sequence[tuple[str, StagePod]]:
    """Every block that applies to the stage with its field, the weakest first."""
    template = spec.pod_template
    return (
        ("trainer.podDefaults", defaults),
        (f"trainer.podDefaults.{stage.slug}", defaults.of(stage)),
        ("podTemplate", template),
        ("resources", _older_fields(spec, stage)),
        (f"podTemplate.{stage.slug}", template.of(stage)),
    )


def _older_fields(spec: FineTuneJobSpec, stage: Stage) -> StagePod:
    """The additions in `spec.resources`: of these, only the priority is for every stage."""
    resources = spec.resources
    if stage is not Stage.TRAIN:
        return StagePod(priority_class_name=resources.priority_class_name)
    return StagePod(
        node_selector=resources.node_selector,
        tolerations=resources.tolerations,
        runtime_class_name=resources.runtime_class_name,
        priority_class_name=resources.priority_class_name,
    )


def _rules(blocks: Sequence[tuple[str, StagePod]]) -> NodeRules:
    selected = {
        key: SelectedLabel(key, value, f"{field}.nodeSelector")
        for field, block in blocks
        for key, value in block.node_selector.items()
    }
    return NodeRules(
        labels=tuple(selected[key] for key in sorted(selected)),
        terms=tuple(
            SelectedTerms(block.node_selector_terms, f"{field}.nodeSelectorTerms")
            for field, block in _applying_terms(blocks)
        ),
        tolerations=tuple(dict.fromkeys(item for _, block in blocks for item in block.tolerations)),
    )


def _applying_terms(blocks: Sequence[tuple[str, StagePod]]) -> list[tuple[str, StagePod]]:
    """The blocks whose terms apply: those of a stage replace the general ones of the same object."""
    chart, chart_stage, job, _, job_stage = blocks
    chosen = [
        chart_stage if chart_stage[1].node_selector_terms else chart,
        job_stage if job_stage[1].node_selector_terms else job,
    ]
    return [pair for pair in chosen if pair[1].node_selector_terms]


def _merged(maps: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {key: value for found in maps for key, value in found.items()}


def _security(defaults: PodSecurity, own: PodSecurity) -> PodSecurity:
    """The job's members replace the chart's. `ids: Assigned` replaces the chart's user and groups.

    A user or group of the job replaces the chart's `ids: Assigned`.
    """
    dropped: dict[str, None] = {}
    if own.ids == "Assigned":
        dropped = dict.fromkeys(("run_as_user", "run_as_group", "fs_group"))
    elif own.has_ids:
        dropped = {"ids": None}
    given = {
        name: getattr(own, name) for name in own.model_fields_set if getattr(own, name) not in (None, ())
    }
    return defaults.model_copy(update={**dropped, **given})
