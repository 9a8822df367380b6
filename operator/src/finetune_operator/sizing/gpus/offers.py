"""GPUs that a cluster has or can start, as offers to a pod that requests one GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from finetune_operator.api.pod_merge import NodeRules, SelectedTerms
from finetune_operator.api.pods import NodeTerm, Toleration
from finetune_operator.api.quantities import parse_count
from finetune_operator.sizing.gpus.gpu import Offer, State
from finetune_operator.sizing.gpus.node_labels import has_gpu_evidence, number
from finetune_operator.sizing.gpus.node_taints import is_cordoned, is_starting
from finetune_operator.sizing.gpus.node_terms import Requirement, describe_requirement, holds, pod_requirement
from finetune_operator.sizing.gpus.nodes import HOSTNAME, NodeRecord
from finetune_operator.sizing.gpus.profiles import GpuProfile, parse_gpu_profiles
from finetune_operator.sizing.gpus.recognition import RecognizedGpu, label_prefix, recognize

__all__ = [
    "GpuProfile",
    "eligible",
    "gpu_taint_keys",
    "offers",
    "other_offers",
    "parse_gpu_profiles",
    "tolerates",
]

_LONGEST_TERMS = 200
"""Characters of terms in a message."""
# Resources that limit a share of a GPU (HAMi and others), which no pod requests alone.
_PARTS_OF_SHARES = ("mem", "memory", "percentage", "core", "cores")
# Labels that every node will have, even if its GPU profile does not list them.
_IMPLIED = {"kubernetes.io/os": "linux", "beta.kubernetes.io/os": "linux"}
_UNKNOWN_UNTIL_STARTED = frozenset(
    ["kubernetes.io/arch", "beta.kubernetes.io/arch", "topology.kubernetes.io/region"]
)


def offers(
    nodes: Iterable[NodeRecord],
    profiles: Sequence[GpuProfile],
    resource_name: str,
    *,
    allow_time_slicing: bool,
) -> tuple[Offer, ...]:
    """Return every offer of `resource_name`: one for each node that has or will have it, then those of GPU profiles.

    A node whose labels name this GPU but which does not offer it yet is `Provisioning`: its driver is starting.
    """
    startup = frozenset(key for profile in profiles for key in profile.startup_taints)
    found = [
        _node_offer(node, resource_name, startup, allow_time_slicing=allow_time_slicing) for node in nodes
    ]
    listed = [
        offer for profile in profiles if profile.resource_name == resource_name for offer in profile.offers()
    ]
    return (*(offer for offer in found if offer is not None), *listed)


def other_offers(
    nodes: Iterable[NodeRecord],
    profiles: Sequence[GpuProfile],
    resource_name: str,
    *,
    allow_time_slicing: bool,
) -> tuple[Offer, ...]:
    """Return the offers of all other GPU resources, for example of MIG slices under strategy mixed."""
    nodes = tuple(nodes)
    names = {name for node in nodes for name in node.allocatable if _is_gpu_resource(node, name)}
    names |= {profile.resource_name for profile in profiles}
    return tuple(
        offer
        for name in sorted(names - {resource_name})
        for offer in offers(nodes, profiles, name, allow_time_slicing=allow_time_slicing)
        if offer.state != "Provisioning"
    )


def _is_gpu_resource(node: NodeRecord, name: str) -> bool:
    """Return whether a node offers this resource, and it is a GPU or a part of one."""
    kind = name.partition("/")[2]
    named = kind.startswith(("gpu", "mig-")) and not kind.endswith(_PARTS_OF_SHARES)
    return named and parse_count(node.allocatable[name]) > 0


def eligible(offer: Offer, rules: NodeRules) -> str | None:
    """Say why a pod with these rules may not use an offer; None if it may.

    Taints that TRAIN always tolerates (`gpu_taint_keys`) and taints of a node's state do not count.
    """
    if offer.exclusion_reason is not None:
        return offer.exclusion_reason
    for wanted in rules.labels:
        key, value = wanted.key, wanted.value
        found = _label(offer, key)
        if found is None and not _may_come_later(offer, key):
            return f"{wanted.field} requires {key}={value}, but {_where(offer)} does not have this label"
        if found is not None and found != value:
            return f"{wanted.field} requires {key}={value}, but {_where(offer)} has {found}"
    for given in rules.terms:
        if not any(_term_holds(offer, term) for term in given.terms):
            return (
                f"{given.field} requires {_describe(given)}, but {_where(offer)} satisfies none of its terms"
            )
    for taint in offer.taints:
        if _counts(taint, offer.resource_name) and not any(
            tolerates(item, taint) for item in rules.tolerations
        ):
            name = taint["key"] + (f"={taint['value']}" if taint.get("value") else "")
            return f"{_where(offer)} has the taint {name}:{taint['effect']}, which resources.tolerations does not tolerate"
    return None


def gpu_taint_keys(resource_name: str) -> tuple[str, ...]:
    """Return the keys of the taints that keep other pods from GPU nodes; TRAIN always tolerates them.

    They are the resource's own name and, for slices and shares, the plain `gpu` of its domain.
    """
    plain = f"{resource_name.partition('/')[0]}/gpu"
    return (resource_name,) if resource_name == plain else (resource_name, plain)


def tolerates(toleration: Toleration, taint: Mapping[str, str]) -> bool:
    """Return whether a toleration covers a taint, by the scheduler's rules."""
    if toleration.effect is not None and toleration.effect != taint.get("effect"):
        return False
    if not toleration.key:
        return toleration.operator == "Exists"
    if toleration.key != taint.get("key"):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == (taint.get("value") or "")


def lasts(taint: Mapping[str, str]) -> bool:
    """Return whether a taint keeps pods away for good: it is not a preference, and not a passing state of its node."""
    key = taint.get("key", "")
    return taint.get("effect") != "PreferNoSchedule" and not is_cordoned(key) and not is_starting(key)


def _node_offer(
    node: NodeRecord, resource_name: str, startup: frozenset[str], *, allow_time_slicing: bool
) -> Offer | None:
    count = parse_count(node.allocatable.get(resource_name))
    if count == 0 and not (has_gpu_evidence(node) and _may_come(node, resource_name)):
        return None
    recognized = recognize(node, resource_name)
    if count == 0 and not (recognized.has_evidence and _belongs(recognized, resource_name)):
        return None
    state = _state(node, count, startup)
    prefix = label_prefix(resource_name)
    expected = number(node.labels.get(f"{prefix}.count")) or 1
    return Offer(
        gpu=recognized.gpu,
        resource_name=resource_name,
        count=count or expected,
        node=node.name,
        labels=node.labels,
        taints=tuple(taint for taint in node.taints if taint.get("key") not in startup),
        sharing=recognized.sharing,
        replicas=recognized.replicas,
        state=state,
        zone=node.zone,
        selector_labels=recognized.selector_labels,
        exclusion_reason=recognized.exclusion_reason
        or _system_exclusion(node)
        or _sharing_exclusion(recognized, allow_time_slicing=allow_time_slicing),
    )


def _may_come(node: NodeRecord, resource_name: str) -> bool:
    """Return whether a resource that the node does not offer may still appear.

    It cannot appear if the node already offers its GPUs as slices, or shared under another name.
    """
    domain = resource_name.partition("/")[0]
    others = (name for name in node.allocatable if name.startswith(f"{domain}/") and name != resource_name)
    if any(parse_count(node.allocatable[name]) for name in others if "gpu" in name or "/mig-" in name):
        return False
    prefix = label_prefix(resource_name)
    if prefix == "nvidia.com/gpu":
        sliced = any(key.startswith("nvidia.com/mig-") and key.endswith(".count") for key in node.labels)
        return not sliced and not resource_name.endswith(".shared")
    return number(node.labels.get(f"{prefix}.count")) not in {None, 0}


def _belongs(recognized: RecognizedGpu, resource_name: str) -> bool:
    """Return whether this resource's device plugin offers the recognized GPU."""
    domain = {"Nvidia": "nvidia.com", "Amd": "amd.com"}.get(recognized.gpu.vendor)
    return resource_name.partition("/")[0] == domain


def _state(node: NodeRecord, count: int, startup: frozenset[str]) -> State:
    keys = {taint["key"] for taint in node.taints if "key" in taint}
    if node.unschedulable or any(map(is_cordoned, keys)):
        return "Cordoned"
    if not node.ready or keys & startup or any(map(is_starting, keys)):
        return "NotReady"
    return "Available" if count else "Provisioning"


def _system_exclusion(node: NodeRecord) -> str | None:
    system = next((node.labels[key] for key in _IMPLIED if key in node.labels), "linux")
    return None if system == "linux" else f"it runs {system}, and the trainer's image needs Linux"


def _sharing_exclusion(recognized: RecognizedGpu, *, allow_time_slicing: bool) -> str | None:
    if recognized.sharing != "TimeSlicing" or allow_time_slicing:
        return None
    return (
        f"its GPU is time-sliced between {recognized.replicas} pods that share its memory; "
        "the chart's allowTimeSlicing must be true to use it"
    )


def _label(offer: Offer, key: str) -> str | None:
    found = offer.labels.get(key)
    if found is None and offer.node is None:
        return _IMPLIED.get(key)
    if found is None and key == HOSTNAME:
        return offer.node
    return found


def _may_come_later(offer: Offer, key: str) -> bool:
    """Return whether a node that does not exist yet may have a label that its GPU profile does not list."""
    return offer.node is None and key in _UNKNOWN_UNTIL_STARTED


def _term_holds(offer: Offer, term: NodeTerm) -> bool:
    return all(_requirement_holds(offer, pod_requirement(item)) for item in term.match_expressions)


def _requirement_holds(offer: Offer, item: Requirement) -> bool:
    found = _label(offer, item.key)
    if found is None:
        return _may_come_later(offer, item.key) or holds(item, {})
    return holds(item, {item.key: found})


def _describe(given: SelectedTerms) -> str:
    """Describe the terms briefly; the first ones are enough to find them."""
    texts = [
        " and ".join(describe_requirement(pod_requirement(item)) for item in term.match_expressions)
        for term in given.terms
    ]
    return " or ".join(texts)[:_LONGEST_TERMS]


def _counts(taint: Mapping[str, str], resource_name: str) -> bool:
    """Return whether only the user's tolerations can overcome a taint."""
    return taint.get("key", "") not in gpu_taint_keys(resource_name) and lasts(taint)


def _where(offer: Offer) -> str:
    return f"node {offer.node}" if offer.node is not None else f"gpuProfiles {offer.profile}"
