"""What the claims of a job and their volumes mean for its stages."""

from __future__ import annotations

from finetune_operator.api.quantities import parse_bytes, whole_gibibytes
from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import DatasetReport, Progress
from finetune_operator.lifecycle.actions import ExpandClaim
from finetune_operator.lifecycle.sizing import Doomed, Hold, Sized, shape_of
from finetune_operator.observed.inventory import Inventory
from finetune_operator.placement.constraints import (
    Expand,
    Placement,
    TooSmall,
    model_cache_problem,
    only_gpu_nodes,
    prepare_placement,
    relocation,
    storage_problem,
    usable_with,
    volume_problem,
    workspace_size,
)
from finetune_operator.placement.storage import JobVolumes, MountedClaim
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.offers import eligible
from finetune_operator.sizing.hosts import DEFAULT_WORKSPACE_SIZE, workspace_bytes
from finetune_operator.sizing.memory.shape import ModelShape
from finetune_operator.status import reporting
from finetune_operator.status.draft import StatusDraft

_BEFORE_WEIGHTS = frozenset({"Starting", "FetchingDataset", "ProvingRows"})
"""What PREPARE does before it fetches weights."""


def place_prepare(
    spec: FineTuneJobSpec, verdict: Sized | None, volumes: JobVolumes, inventory: Inventory
) -> Placement | Hold | Doomed:
    """Where PREPARE may run so that TRAIN can follow it, or why nothing could."""
    nodes = tuple(inventory.nodes.values())
    cache = volumes.model_cache
    if cache is not None and nodes:
        problem = model_cache_problem(cache.name, cache.access_modes, cache.volume, nodes)
        if problem is not None:
            return Doomed(Reason.MODEL_CACHE_NOT_SHARED, problem)
    offers = _candidates(spec, inventory) if verdict is None else verdict.offers
    workspace = volumes.workspace
    bound = workspace.volume if workspace is not None else None
    if verdict is not None and bound is None:
        problem = storage_problem(volumes.storage_class, offers)
        if problem is not None:
            return Hold(Reason.WORKSPACE_ZONE_MISMATCH, problem)
    if cache is not None:
        offers = usable_with([cache.volume], offers) or offers
    return prepare_placement(offers, nodes, volumes.storage_class, bound, certain=verdict is not None)


def place_merge(spec: FineTuneJobSpec, volumes: JobVolumes, inventory: Inventory) -> Placement:
    """Where MERGE may run: the scheduler follows the workspace, which may lie where only GPU nodes are."""
    volume = volumes.workspace.volume if volumes.workspace is not None else None
    if volume is None:
        return Placement()
    offers = inventory.offers(spec.resources.gpu_resource_name)
    there = only_gpu_nodes(volume, tuple(inventory.nodes.values()), offers)
    return Placement(tolerates_gpu_nodes=there)


def to_be_moved(
    spec: FineTuneJobSpec, sized: Sized, volumes: JobVolumes, progress: Progress | None
) -> MountedClaim | None:
    """The workspace's claim, if it is better made anew: it lies apart from every fitting GPU, and holds little yet.

    `progress` is that of a PREPARE that has just told the model's config, None otherwise.
    """
    workspace = volumes.workspace
    if workspace is None or progress is None:
        return None
    moved = relocation(
        workspace.volume,
        volumes.storage_class,
        sized.offers,
        own_workspace=spec.workspace.existing_claim is None,
        weights_fetched=progress.activity not in _BEFORE_WEIGHTS,
    )
    return None if moved is None else workspace


def check_volumes(
    spec: FineTuneJobSpec, draft: StatusDraft, sized: Sized, volumes: JobVolumes
) -> tuple[Sized | Hold | Doomed, tuple[ExpandClaim, ...]]:
    """Whether the volumes let TRAIN follow, and how a workspace is to grow that turns out to be too small."""
    changes: tuple[ExpandClaim, ...] = ()
    shape = shape_of(draft)
    if shape is not None and not draft.training_begun:
        dataset = None if draft.dataset is None else reporting.read_dataset(draft.dataset)
        own = spec.workspace.existing_claim is None
        found = fit_workspace(spec, shape, dataset, volumes, own=own)
        if isinstance(found, Doomed):
            return found, ()
        changes = () if found is None else (found,)
    hold = volumes_hold(sized, volumes) if draft.stage is Stage.TRAIN else None
    return hold or sized, changes


def volumes_hold(sized: Sized, volumes: JobVolumes) -> Hold | None:
    """Why no GPU on which the job fits can have the job's volumes; None if one can."""
    mounted = (("workspace", volumes.workspace), ("model cache", volumes.model_cache))
    bound = [
        (role, claim.volume) for role, claim in mounted if claim is not None and claim.volume is not None
    ]
    for role, volume in bound:
        problem = volume_problem(volume, sized.offers, role)
        if problem is not None:
            return Hold(Reason.WORKSPACE_ZONE_MISMATCH, problem)
    if sized.offers and not usable_with([volume for _, volume in bound], sized.offers):
        names = " and ".join(f"the {role}'s volume {volume.name}" for role, volume in bound)
        message = (
            f"{names} must be usable together where a GPU that fits is, found no node for both; add such a node, or "
            "move one of them"
        )
        return Hold(Reason.WORKSPACE_ZONE_MISMATCH, message)
    return None


def claim_size(spec: FineTuneJobSpec, draft: StatusDraft) -> str:
    """Size of a claim to be made for a job whose spec names none: the default, or more where the known model needs it."""
    shape = shape_of(draft)
    if shape is None:
        return DEFAULT_WORKSPACE_SIZE
    dataset = None if draft.dataset is None else reporting.read_dataset(draft.dataset)
    needed, _ = workspace_bytes(spec, shape, dataset)
    return whole_gibibytes(max(needed, parse_bytes(DEFAULT_WORKSPACE_SIZE)))


def fit_workspace(
    spec: FineTuneJobSpec, shape: ModelShape, dataset: DatasetReport | None, volumes: JobVolumes, *, own: bool
) -> ExpandClaim | Doomed | None:
    """What to do about a workspace that the model or the data turn out to be too large for."""
    claim = volumes.workspace
    if claim is None or claim.capacity is None:
        return None
    needed, why = workspace_bytes(spec, shape, dataset)
    found = workspace_size(claim.capacity, needed, why, volumes.storage_class, own_workspace=own)
    match found:
        case Expand(size, _):
            return ExpandClaim(claim.name, claim.uid, size)
        case TooSmall(message):
            return Doomed(Reason.WORKSPACE_TOO_SMALL, message)
        case None:
            return None


def _candidates(spec: FineTuneJobSpec, inventory: Inventory) -> tuple[Offer, ...]:
    """The GPUs that TRAIN may use, as far as is known before the model is."""
    resources = spec.resources
    return tuple(
        offer
        for offer in inventory.offers(resources.gpu_resource_name)
        if eligible(offer, resources.node_selector, resources.tolerations) is None
    )
