"""A model of the scheduler of Kubernetes: free GPUs, and the volume of a pod."""

from __future__ import annotations

from collections.abc import Collection

from finetune_operator.api.stages import workspace_claim_name

from tests.support.simulation.controllers import ENDED
from tests.support.simulation.server import CLAIMS, NODES, PODS, VOLUMES, Body, Server

GPU = "nvidia.com/gpu"


def bind(server: Server, claim: Body) -> None:
    """Make a volume that every node can use, for a claim."""
    name, spec = f"pv-{claim['metadata']['uid']}", claim["spec"]
    volume = {"capacity": spec["resources"]["requests"], "accessModes": spec["accessModes"]}
    server.create(VOLUMES, {"metadata": {"name": name}, "spec": volume})
    server.change(CLAIMS, claim, spec={**spec, "volumeName": name}, status={"phase": "Bound"})


def free_node(server: Server, pod: Body, unreachable: Collection[str]) -> str | None:
    """Return a node with as many free GPUs as a pod needs; None if there is none."""
    needs = _gpus(pod)
    for node in server.all(NODES):
        name = node["metadata"]["name"]
        if node["spec"].get("taints") or name in unreachable:
            continue
        used = sum(
            _gpus(other)
            for other in server.all(PODS)
            if other["spec"].get("nodeName") == name and other["status"]["phase"] not in ENDED
        )
        if used + needs <= int(node["status"]["allocatable"].get(GPU, "0")):
            return str(name)
    return None


def claim_of(server: Server, pod: Body) -> Body | None:
    """The workspace of a pod, or the claim that it takes for it."""
    namespace = pod["metadata"]["namespace"]
    name = workspace_claim_name(pod["metadata"]["labels"].get("finetune.dev/job", "?"))
    mounted = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    names = [name] if name in mounted else sorted(each for each in mounted if each.endswith("-workspace"))
    return server.get(CLAIMS, namespace, names[0]) if names else None


def _gpus(pod: Body) -> int:
    limits = pod["spec"]["containers"][0]["resources"].get("limits") or {}
    return int(limits.get(GPU, "0"))
