"""What runs in a namespace, read once a round, and what tests do to it through the API."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster import product
from devcluster.api import ApiClient
from devcluster.errors import ApiError

Object = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
_CONFLICT, _NOT_FOUND = 409, 404


@dataclass
class Scene:
    """The FineTuneJobs, Jobs, pods and claims of one namespace at the last `look`."""

    kubeconfig: Path
    namespace: str
    jobs: dict[str, Object] = field(default_factory=dict)
    children: dict[str, Object] = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)
    claims: dict[str, Object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._api = ApiClient(self.kubeconfig, 60)
        core, batch = f"/api/v1/namespaces/{self.namespace}", f"/apis/batch/v1/namespaces/{self.namespace}"
        self._paths = {
            "jobs": f"/apis/finetune.dev/v1alpha1/namespaces/{self.namespace}/finetunejobs",
            "children": f"{batch}/jobs",
            "pods": f"{core}/pods",
            "claims": f"{core}/persistentvolumeclaims",
        }

    def look(self) -> None:
        """Read everything anew."""
        for kind, path in self._paths.items():
            items = self._api.request("GET", path)["items"]
            setattr(self, kind, {item["metadata"]["name"]: item for item in items})

    def create(self, document: Object, *, seconds: float = 60.0) -> str:
        """Create a FineTuneJob, as soon as its namesake is gone, and return its uid."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                created = self._api.request("POST", self._paths["jobs"], document)
            except ApiError as error:
                if error.status != _CONFLICT or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return str(created["metadata"]["uid"])

    def patch(self, name: str, spec: Object) -> None:
        """Change the spec of a FineTuneJob. Raises ApiError if the API server refuses it."""
        self._api.request("PATCH", f"{self._paths['jobs']}/{name}", {"spec": spec}, MERGE_PATCH)

    def delete(self, name: str, propagation: str) -> None:
        """Delete a FineTuneJob with this propagation policy."""
        self._api.request("DELETE", f"{self._paths['jobs']}/{name}?propagationPolicy={propagation}")

    def evict(self, pod: str) -> bool:
        """Evict a pod, as a drain does; False if it has ended meanwhile."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        try:
            self._api.request("POST", f"{self._paths['pods']}/{pod}/eviction", body)
        except ApiError as error:
            if error.status != _NOT_FOUND:
                raise
            return False
        return True

    def remove_orphans(self) -> None:
        """Delete Jobs and claims that no FineTuneJob owns, with their pods."""
        for kind in ("children", "claims"):
            for name, item in getattr(self, kind).items():
                if "finetune.dev/job" in item["metadata"].get("labels", {}) and not item["metadata"].get(
                    "ownerReferences"
                ):
                    self._api.request("DELETE", f"{self._paths[kind]}/{name}?propagationPolicy=Background")

    def running(self, name: str, stage: str, *, or_bound: bool = False) -> str | None:
        """Return a pod of the job's stage whose container runs and that nobody deletes.

        With `or_bound`, return it as soon as it has a node: a busy kubelet tells of a short run only after its end.
        """
        for pod in self._pods_of(name):
            states = [each["state"] for each in pod["status"].get("containerStatuses", [])]
            of_stage = pod["metadata"]["labels"]["finetune.dev/stage"] == stage
            if (
                of_stage
                and "deletionTimestamp" not in pod["metadata"]
                and (
                    any("running" in each for each in states)
                    or (or_bound and pod["status"]["phase"] == "Pending" and "nodeName" in pod["spec"])
                )
            ):
                return str(pod["metadata"]["name"])
        return None

    def bound_to(self, name: str, stage: str, node: str) -> bool:
        """True if a pod of the job's stage is bound to this node."""
        return any(
            pod["metadata"]["labels"]["finetune.dev/stage"] == stage and pod["spec"].get("nodeName") == node
            for pod in self._pods_of(name)
        )

    def condition(self, name: str, kind: str) -> Object:
        """Return a condition of a job."""
        return product.condition(self.jobs.get(name, {}), kind)

    def ended(self, name: str) -> bool:
        """True if the job has succeeded or failed, or does not exist."""
        return name not in self.jobs or self.condition(name, "Succeeded")["status"] in {"True", "False"}

    def finished(self, name: str) -> bool:
        """True if the job exists, has succeeded or failed, and nobody deletes it."""
        job = self.jobs.get(name)
        return job is not None and "deletionTimestamp" not in job["metadata"] and self.ended(name)

    def left_of(self, name: str) -> list[str]:
        """Return the Jobs, pods and claims that carry the job's label."""
        return [
            f"{kind} {item['metadata']['name']}"
            for kind in ("children", "pods", "claims")
            for item in getattr(self, kind).values()
            if item["metadata"].get("labels", {}).get("finetune.dev/job") == name
        ]

    def objects_of(self, name: str) -> list[Object]:
        """Return the job, and the Jobs, pods and claims that carry its label."""
        own = [self.jobs[name]] if name in self.jobs else []
        labeled = [
            item
            for kind in (self.children, self.pods, self.claims)
            for item in kind.values()
            if item["metadata"].get("labels", {}).get("finetune.dev/job") == name
        ]
        return own + labeled

    def has_no_room(self, name: str) -> bool:
        """True if the scheduler finds no room for a pod of the job."""
        return any(
            condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable"
            for pod in self._pods_of(name)
            for condition in pod["status"].get("conditions", [])
        )

    def _pods_of(self, name: str) -> list[Object]:
        return [
            pod
            for pod in self.pods.values()
            if pod["metadata"].get("labels", {}).get("finetune.dev/job") == name
        ]
