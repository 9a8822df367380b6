"""FineTuneJobs of one namespace, through kubectl: create, read, change and follow them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_cli.cluster.kubectl import REQUEST_SECONDS, ApiUnavailableError, Kubectl, NotFoundError

if TYPE_CHECKING:  # the package imports the library that it stands on
    from finetune_client.types import FineTuneJob, FineTuneJobSpec

API_VERSION = "finetune.dev/v1alpha1"
RESOURCE = "finetunejobs.finetune.dev"
POLL_SECONDS = 2.0


def condition(job: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return the condition of type `kind`, or an empty one if the job has none."""
    found = (job.get("status") or {}).get("conditions") or ()
    return next((item for item in found if item.get("type") == kind), {})


def has_ended(job: Mapping[str, Any]) -> bool:
    """Return True if the job succeeded or failed for ever."""
    return condition(job, "Succeeded").get("status") in {"True", "False"}


def manifest(name: str, spec: FineTuneJobSpec, labels: Mapping[str, str] | None = None) -> FineTuneJob:
    """Return the FineTuneJob as `kubectl apply` takes it."""
    metadata: dict[str, Any] = {"name": name, **({"labels": dict(labels)} if labels else {})}
    return {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec}


@dataclass(frozen=True)
class Client:
    """A client of the namespace of `kubectl`. Every method raises ClusterError if a request fails."""

    kubectl: Kubectl = field(default_factory=Kubectl)
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def create(self, job: Mapping[str, Any], *, dry_run: bool = False) -> FineTuneJob:
        """Create a job from a whole manifest. Raises ExistsError or RejectedError."""
        options = ["--dry-run=server"] if dry_run else []
        created: FineTuneJob = self.kubectl.json(
            "create", "--filename=-", "--validate=strict", *options, stdin=json.dumps(job)
        )
        return created

    def get(self, name: str) -> FineTuneJob:
        """Return a job. Raises NotFoundError."""
        found: FineTuneJob = self.kubectl.json("get", RESOURCE, name)
        return found

    def names(self, *, seconds: float = REQUEST_SECONDS) -> Sequence[str]:
        """Return the names of all jobs, without the jobs themselves, within `seconds`."""
        lines = self.kubectl.run("get", RESOURCE, "--output=name", seconds=seconds)
        return [line.rpartition("/")[2] for line in lines.split()]

    def list(self, selector: str | None = None, *, all_namespaces: bool = False) -> Sequence[FineTuneJob]:
        """Return the jobs that a label selector finds, by default all."""
        options = [] if selector is None else [f"--selector={selector}"]
        options += ["--all-namespaces"] if all_namespaces else []
        found: Sequence[FineTuneJob] = self.kubectl.json("get", RESOURCE, *options)["items"]
        return found

    def suspend(self, name: str, *, suspended: bool = True) -> FineTuneJob:
        """Suspend a job, or resume it. A suspended job keeps its workspace and holds no GPU."""
        patch = json.dumps({"spec": {"suspend": suspended}})
        changed: FineTuneJob = self.kubectl.json("patch", RESOURCE, name, "--type=merge", f"--patch={patch}")
        return changed

    def follow(
        self,
        *names: str,
        timeout: float | None = None,
        every: float = POLL_SECONDS,
        on_outage: Callable[[ApiUnavailableError], None] | None = None,
    ) -> Iterator[FineTuneJob]:
        """Yield the jobs now and after each change, until all have ended. An outage of the API server only delays this.

        Raises TimeoutError after `timeout` seconds, and NotFoundError if a job is deleted or replaced.
        """
        deadline = None if timeout is None else self.clock() + timeout
        seen: dict[str, FineTuneJob] = {}
        while True:
            for name in names:
                known = seen.get(name)
                if known is not None and has_ended(known):
                    continue
                try:
                    job = self.get(name)
                except ApiUnavailableError as error:
                    if on_outage is not None:
                        on_outage(error)
                    break
                if known is not None and job["metadata"]["uid"] != known["metadata"]["uid"]:
                    raise NotFoundError(f"FineTuneJob {name} was deleted, and another one has its name now")
                seen[name] = job
                if (
                    known is None
                    or job["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]
                ):
                    yield job
            running = [name for name in names if name not in seen or not has_ended(seen[name])]
            if not running:
                return
            if deadline is not None and self.clock() >= deadline:
                raise TimeoutError(f"{', '.join(running)} must end within {timeout:g} s, but did not")
            self.sleep(every)
