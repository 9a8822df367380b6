"""Decides where the stages can run with the job's volumes, and how large its workspace must be."""

from __future__ import annotations

from collections.abc import Collection

from finetune_operator.api.plan import Layout, Optimizer
from finetune_operator.api.pod_merge import NO_DEFAULTS, node_rules
from finetune_operator.api.pods import PodTemplate
from finetune_operator.api.quantities import parse_bytes, whole_gibibytes
from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.contract.dataset_report import DatasetReport
from finetune_operator.contract.result import Progress
from finetune_operator.lifecycle.actions import CreateClaim, ExpandClaim
from finetune_operator.lifecycle.sizing import Blocked, Feasible, Infeasible, plan_optimizers, shape_of
from finetune_operator.manifests.jobs import build_workspace_claim
from finetune_operator.observed.inventory import Inventory
from finetune_operator.observed.observation import JobRecord
from finetune_operator.placement.constraints import (
    ExpandWorkspace,
    InfeasibleWorkspace,
    Placement,
    check_workspace_size,
    compatible_offers,
    model_cache_problem,
    only_gpu_nodes,
    prepare_placement,
    relocation_reason,
    storage_problem,
    volume_problem,
)
from finetune_operator.placement.stage_nodes import apart_message, node_test, shared_offers
from finetune_operator.placement.storage import JobVolumes, MountedClaim
from finetune_operator.settings import Settings
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.offers import eligible
from finetune_operator.sizing.hosts import DEFAULT_WORKSPACE_SIZE, workspace_bytes
from finetune_operator.sizing.ladder import ABILITIES
from finetune_operator.sizing.layout import widest_layout
from finetune_operator.sizing.memory.shape import ModelShape
from finetune_operator.status import reporting
from finetune_operator.status.draft import StatusDraft

_SHARED_MODES = frozenset({"ReadWriteMany", "ReadOnlyMany"})
_BEFORE_WEIGHTS = frozenset({"Starting", "FetchingDataset", "ProvingRows", "TracingMemory"})
"""Activities of PREPARE before it downloads weights."""


def create_claim(
    job: JobRecord, spec: FineTuneJobSpec, draft: StatusDraft, settings: Settings, inventory: Inventory
) -> CreateClaim:
    """The creation of the workspace's claim. Pods of TRAIN on several nodes share it."""
    size = claim_size(spec, draft)
    layout = widest_layout(spec, _candidates(spec, inventory, settings.trainer.defaults))
    return CreateClaim(
        build_workspace_claim(
            job,
            spec,
            size,
            settings.trainer.defaults,
            settings.cost.labels,
            shared=layout.nodes > 1,
        )
    )


def place_prepare(
    spec: FineTuneJobSpec,
    feasible: Feasible | None,
    volumes: JobVolumes,
    inventory: Inventory,
    defaults: PodTemplate = NO_DEFAULTS,
) -> Placement | Blocked | Infeasible:
    """Choose where PREPARE may run so that TRAIN can use its volumes, or say why that is impossible.

    `defaults` are the chart's additions to the pods. They restrict the nodes of each stage.
    """
    nodes = tuple(inventory.nodes.values())
    cache = volumes.model_cache
    if cache is not None and nodes:
        problem = model_cache_problem(cache.name, cache.access_modes, cache.volume, nodes)
        if problem is not None:
            return Infeasible(Reason.MODEL_CACHE_NOT_SHARED, problem)
    candidates = _candidates(spec, inventory, defaults)
    unshared = unshared_volume(spec, widest_layout(spec, candidates), volumes)
    if isinstance(unshared, Infeasible):
        return unshared
    offers = candidates if feasible is None else feasible.offers
    workspace = volumes.workspace
    bound = workspace.volume if workspace is not None else None
    if feasible is not None and bound is None:
        problem = storage_problem(volumes.storage_class, offers)
        if problem is not None:
            return Blocked(Reason.WORKSPACE_ZONE_MISMATCH, problem)
    if cache is not None:
        offers = compatible_offers([cache.volume], offers) or offers
    cpu_rules = tuple(node_rules(defaults, spec, stage) for stage in (Stage.PREPARE, Stage.MERGE))
    if bound is None:
        shared = shared_offers(cpu_rules, offers, volumes.storage_class)
        if offers and not shared:
            message = apart_message(cpu_rules, offers, volumes.storage_class)
            return Blocked(Reason.WORKSPACE_ZONE_MISMATCH, message)
        offers = shared
    may_use = node_test(cpu_rules[0], inventory.offers(spec.resources.gpu_resource_name))
    return prepare_placement(
        offers, nodes, volumes.storage_class, bound, certain=feasible is not None, may_use=may_use
    )


def place_merge(
    spec: FineTuneJobSpec, volumes: JobVolumes, inventory: Inventory, defaults: PodTemplate = NO_DEFAULTS
) -> Placement:
    """Choose where MERGE may run.

    The scheduler follows the workspace. If only GPU nodes can mount it, MERGE must tolerate their taints.
    """
    volume = volumes.workspace.volume if volumes.workspace is not None else None
    if volume is None:
        return Placement()
    offers = inventory.offers(spec.resources.gpu_resource_name)
    may_use = node_test(node_rules(defaults, spec, Stage.MERGE), offers)
    there = only_gpu_nodes(volume, tuple(inventory.nodes.values()), offers, may_use)
    return Placement(tolerates_gpu_nodes=there)


def misplaced_workspace(
    spec: FineTuneJobSpec, feasible: Feasible, volumes: JobVolumes, progress: Progress | None
) -> MountedClaim | None:
    """The workspace's claim if it should be replaced; None if it stays.

    It is replaced if no GPU that fits can mount it and PREPARE has not downloaded weights yet. `progress` is the first
    report of PREPARE that contains the model's config, None otherwise.
    """
    workspace = volumes.workspace
    if workspace is None or progress is None:
        return None
    moved = relocation_reason(
        workspace.volume,
        volumes.storage_class,
        feasible.offers,
        own_workspace=spec.workspace.existing_claim is None,
        weights_fetched=progress.activity not in _BEFORE_WEIGHTS,
    )
    return None if moved is None else workspace


def check_volumes(
    spec: FineTuneJobSpec, draft: StatusDraft, feasible: Feasible, volumes: JobVolumes
) -> tuple[Feasible | Blocked | Infeasible, tuple[ExpandClaim, ...]]:
    """Check that TRAIN can use the volumes, and enlarge a workspace that is too small."""
    changes: tuple[ExpandClaim, ...] = ()
    shape = shape_of(draft)
    if shape is not None and not draft.training_begun:
        dataset = None if draft.dataset is None else reporting.read_dataset(draft.dataset)
        own = spec.workspace.existing_claim is None
        # Before TRAIN has its plan, the largest optimizer counts.
        optimizers = plan_optimizers(feasible.plan) if draft.stage is Stage.TRAIN else ABILITIES.optimizers
        found = fit_workspace(spec, shape, dataset, volumes, optimizers, own=own)
        if isinstance(found, Infeasible):
            return found, ()
        changes = () if found is None else (found,)
    if draft.stage is not Stage.TRAIN:
        return feasible, changes
    unshared = unshared_volume(spec, feasible.plan.layout, volumes)
    return unshared or volumes_blocked(feasible, volumes) or feasible, changes


def unshared_volume(
    spec: FineTuneJobSpec, layout: Layout, volumes: JobVolumes
) -> Blocked | Infeasible | None:
    """Say which volume the pods of TRAIN cannot use on several nodes at the same time; None if there is none."""
    if layout.nodes == 1:
        return None
    pods = f"the {layout.nodes} pods of TRAIN"
    cache, workspace = volumes.model_cache, volumes.workspace
    if cache is not None and not _SHARED_MODES & set(cache.access_modes):
        return Infeasible(
            Reason.MODEL_CACHE_NOT_SHARED,
            f"modelCache must be a claim that {pods} can use on several nodes, but {cache.name} has "
            f"{_modes(cache)}; create the job again without modelCache, or with a ReadWriteMany claim",
        )
    if workspace is None or "ReadWriteMany" in workspace.access_modes:
        return None
    found = f"the workspace must be ReadWriteMany for {pods} on several nodes, but claim {workspace.name} has {_modes(workspace)}"
    if spec.workspace.existing_claim is not None:
        return Infeasible(
            Reason.WORKSPACE_NOT_SHARED,
            f"{found}; create the job again with a ReadWriteMany claim, or with a resources.gpus that one node has",
        )
    return Blocked(
        Reason.WORKSPACE_NOT_SHARED,
        f"{found}, because one node offered all GPUs when it was made; add such a node, or create the job again with "
        "resources.gpusPerNode",
    )


def _modes(claim: MountedClaim) -> str:
    return ", ".join(sorted(claim.access_modes)) or "no access mode"


def volumes_blocked(feasible: Feasible, volumes: JobVolumes) -> Blocked | None:
    """Say why no GPU that the job fits on can mount the job's volumes; None if one can."""
    mounted = (("workspace", volumes.workspace), ("model cache", volumes.model_cache))
    bound = [
        (role, claim.volume) for role, claim in mounted if claim is not None and claim.volume is not None
    ]
    for role, volume in bound:
        problem = volume_problem(volume, feasible.offers, role)
        if problem is not None:
            return Blocked(Reason.WORKSPACE_ZONE_MISMATCH, problem)
    if feasible.offers and not compatible_offers([volume for _, volume in bound], feasible.offers):
        names = " and ".join(f"the {role}'s volume {volume.name}" for role, volume in bound)
        message = (
            f"{names} must both be usable on a node with a GPU that fits, but there is no such node; add one, or move "
            "one of the volumes"
        )
        return Blocked(Reason.WORKSPACE_ZONE_MISMATCH, message)
    return None


def claim_size(spec: FineTuneJobSpec, draft: StatusDraft) -> str:
    """Size of a new workspace claim if the spec names none: the default, or more if the model needs more."""
    shape = shape_of(draft)
    if shape is None:
        return DEFAULT_WORKSPACE_SIZE
    dataset = None if draft.dataset is None else reporting.read_dataset(draft.dataset)
    needed, _ = workspace_bytes(spec, shape, dataset)
    return whole_gibibytes(max(needed, parse_bytes(DEFAULT_WORKSPACE_SIZE)))


def fit_workspace(
    spec: FineTuneJobSpec,
    shape: ModelShape,
    dataset: DatasetReport | None,
    volumes: JobVolumes,
    optimizers: Collection[Optimizer],
    *,
    own: bool,
) -> ExpandClaim | Infeasible | None:
    """Compare the workspace with what the model and the data need; None if it is large enough.

    `optimizers` are those that TRAIN may take. `own` means that the operator made the claim.
    """
    claim = volumes.workspace
    if claim is None or claim.capacity is None:
        return None
    needed, why = workspace_bytes(spec, shape, dataset, optimizers=optimizers)
    found = check_workspace_size(claim.capacity, needed, why, volumes.storage_class, own_workspace=own)
    match found:
        case ExpandWorkspace(size, _):
            return ExpandClaim(claim.name, claim.uid, size)
        case InfeasibleWorkspace(message):
            return Infeasible(Reason.WORKSPACE_TOO_SMALL, message)
        case None:
            return None


def _candidates(spec: FineTuneJobSpec, inventory: Inventory, defaults: PodTemplate) -> tuple[Offer, ...]:
    """The GPUs that TRAIN may use, before the model is known."""
    rules = node_rules(defaults, spec, Stage.TRAIN)
    offers = inventory.offers(spec.resources.gpu_resource_name)
    return tuple(offer for offer in offers if eligible(offer, rules) is None)
