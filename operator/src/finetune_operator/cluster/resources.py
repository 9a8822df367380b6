"""The operator's reads and writes of the cluster. Each of them is safe to repeat."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from finetune_operator.api.stages import (
    CONTROLLER_LABEL,
    GROUP,
    JOB_LABEL,
    JOB_SET,
    JOB_SET_LABEL,
    KIND,
    PLURAL,
    SUSPENSION_ANNOTATION,
    VERSION,
)
from finetune_operator.cluster.apply_body import APPLY
from finetune_operator.cluster.client import (
    MERGE,
    PAGE,
    UNANSWERED,
    ApiClient,
    Item,
    ObjectList,
    Project,
)
from finetune_operator.cluster.refusals import refusal_of
from finetune_operator.contract.bounded import clean_text
from finetune_operator.errors import ApiError, ChildRejectedError, ConflictError, StatusRefusedError
from finetune_operator.observed.observation import JobRecord, Key

FIELD_MANAGER = "finetune-operator"
SHORT_PAGE = 100
"""FineTuneJobs in a page of a slow list. The event loop stands still while it reads a page."""


def whole(body: dict[str, Any]) -> dict[str, Any]:
    """Keep the whole object, for lists that are short."""
    return body


def jobs_path(namespace: str = "") -> str:
    """Path of FineTuneJobs, in one namespace or in all."""
    return _path(f"/apis/{GROUP}/{VERSION}", namespace, PLURAL)


def batch_jobs_path(namespace: str = "") -> str:
    """Path of batch/v1 Jobs."""
    return _path("/apis/batch/v1", namespace, "jobs")


def job_sets_path(namespace: str = "") -> str:
    """Path of JobSets."""
    return _path(JOB_SETS_GROUP_PATH, namespace, "jobsets")


def child_path(namespace: str, kind: str) -> str:
    """Path of the Jobs or of the JobSets of a namespace."""
    return (job_sets_path if kind == JOB_SET else batch_jobs_path)(namespace)


def pods_path(namespace: str = "") -> str:
    """Path of pods."""
    return _path("/api/v1", namespace, "pods")


def claims_path(namespace: str = "") -> str:
    """Path of PersistentVolumeClaims."""
    return _path("/api/v1", namespace, "persistentvolumeclaims")


def events_path(namespace: str) -> str:
    """Path of Events."""
    return _path("/api/v1", namespace, "events")


JOB_SETS_GROUP_PATH = "/apis/jobset.x-k8s.io/v1alpha2"
_NO_DRY_RUN = "does not support dry run"
NODES_PATH = "/api/v1/nodes"
STORAGE_CLASSES_PATH = "/apis/storage.k8s.io/v1/storageclasses"
VOLUMES_PATH = "/api/v1/persistentvolumes"


class Cluster:
    """Reads and writes of the operator."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self.job_sets = False
        """Children are JobSets, too: they are used, and the API server has them."""

    async def await_server(self) -> None:
        """Wait in an outage of the API server, for its end or for this caller's turn to try it."""
        await self._api.outage.wait()

    # -- reading ------------------------------------------------------------------------------------------------

    async def list_jobs(
        self, namespace: str, project: Project[Item], *, fields: str = "", share: float = 1.0
    ) -> ObjectList[Item]:
        """All FineTuneJobs that a field selector selects, each reduced by `project` as its page arrives.

        With a `share` below 1, the list takes this share of the time, and its pages are short.
        """
        page = PAGE if share == 1.0 else SHORT_PAGE
        return await self._api.list_all(jobs_path(namespace), project, fields=fields, page=page, share=share)

    async def find_job_sets(self) -> bool:
        """Use JobSets from now on if the API server has them; returns True if it does."""
        self.job_sets = await self._read(JOB_SETS_GROUP_PATH) is not None
        return self.job_sets

    async def list_children(self, namespace: str, project: Project[Item]) -> ObjectList[Item]:
        """All batch/v1 Jobs and JobSets with the operator's label."""
        return await self._list_children(namespace, project, JOB_LABEL)

    async def list_pods(self, namespace: str, project: Project[Item]) -> ObjectList[Item]:
        """All pods with the operator's label."""
        return await self._api.list_all(pods_path(namespace), project, labels=JOB_LABEL)

    async def list_claims(self, namespace: str, project: Project[Item]) -> ObjectList[Item]:
        """All claims with the operator's label."""
        return await self._api.list_all(claims_path(namespace), project, labels=JOB_LABEL)

    async def list_nodes(self, project: Project[Item]) -> ObjectList[Item]:
        """All nodes."""
        return await self._api.list_all(NODES_PATH, project)

    async def read_node(self, name: str) -> dict[str, Any] | None:
        """A node; None if there is none. It is read as a list, which is the permission that the operator has."""
        body = await self._api.call("GET", NODES_PATH, query={"fieldSelector": f"metadata.name={name}"})
        items = body.get("items") or ()
        return next((item for item in items if item["metadata"]["name"] == name), None)

    async def list_storage_classes(self) -> list[dict[str, Any]]:
        """All StorageClasses."""
        return (await self._api.list_all(STORAGE_CLASSES_PATH, whole)).items

    async def list_events(
        self, namespace: str, fields: str, project: Project[Item], *, maximum_pages: int = 1
    ) -> ObjectList[Item]:
        """The Events of a namespace that the field selector selects, at most `maximum_pages` pages of them."""
        return await self._api.list_all(
            events_path(namespace), project, fields=fields, maximum_pages=maximum_pages
        )

    async def read_claim(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A PersistentVolumeClaim; None if there is none."""
        return await self._read(f"{claims_path(namespace)}/{name}")

    async def read_volume(self, name: str) -> dict[str, Any] | None:
        """A PersistentVolume; None if there is none."""
        return await self._read(f"{VOLUMES_PATH}/{name}")

    async def read_job(self, key: Key) -> dict[str, Any] | None:
        """A FineTuneJob; None if there is none."""
        return await self._read(f"{jobs_path(key[0])}/{key[1]}")

    async def read_children(
        self, key: Key, job_names: Collection[str], job_uids: Collection[str]
    ) -> tuple[ObjectList[dict[str, Any]], ObjectList[dict[str, Any]]]:
        """One FineTuneJob's batch/v1 Jobs and JobSets, and its pods, from the API server itself.

        Labels may have been changed. So Jobs of `job_names` are read by name, and pods also by the label that the Job
        controller gives to the pods of each Job, here and in `job_uids`. Without that label, it gives up the pod.
        """
        namespace, name = key
        selector = f"{JOB_LABEL}={name}"
        children = await self._list_children(namespace, whole, selector)
        found = {body["metadata"]["name"] for body in children.items}
        for missing in sorted(set(job_names) - found):
            for path in (batch_jobs_path, job_sets_path) if self.job_sets else (batch_jobs_path,):
                body = await self._read(f"{path(namespace)}/{missing}")
                if body is not None:
                    children.items.append(body)
        pods = await self._api.list_all(pods_path(namespace), whole, labels=selector)
        uids = {body["metadata"]["uid"] for body in children.items} | set(job_uids)
        if uids:
            listed = {body["metadata"]["uid"] for body in pods.items}
            for label in (CONTROLLER_LABEL, JOB_SET_LABEL) if self.job_sets else (CONTROLLER_LABEL,):
                owners = f"{label} in ({','.join(sorted(uids))})"
                owned = await self._api.list_all(pods_path(namespace), whole, labels=owners)
                pods.items.extend(body for body in owned.items if body["metadata"]["uid"] not in listed)
                listed |= {body["metadata"]["uid"] for body in owned.items}
        return children, pods

    # -- writing ------------------------------------------------------------------------------------------------

    async def write_status(self, job: JobRecord, status: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the whole status; returns the stored FineTuneJob.

        Raises ConflictError if the object has changed since `job` was read, or if it is another one of the same name.
        The resourceVersion shows both, because it is never used twice. The API server does not compare the uid for the
        status of custom resources. Raises StatusRefusedError if the CRD does not allow the status.
        """
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "metadata": {
                "name": job.name,
                "namespace": job.namespace,
                "uid": job.uid,
                "resourceVersion": job.resource_version,
            },
            "status": dict(status),
        }
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        path = f"{jobs_path(job.namespace)}/{job.name}/status"
        try:
            return await self._api.call("PATCH", path, query=query, body=body, content_type=APPLY)
        except ApiError as error:
            if error.status in {404, 409}:
                raise ConflictError(f"FineTuneJob {job.namespace}/{job.name} has changed: {error}") from error
            if error.status in {400, 413, 422} and error.reason:
                raise StatusRefusedError(clean_text(error.message), error.fields) from error
            raise

    async def create_child(self, path: str, job: JobRecord, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create a child of `job`, or return the existing one of that name if it belongs to `job`.

        Raises ConflictError if an earlier FineTuneJob of the same name still has it, and ChildRejectedError if the API
        server rejects it or another owner has an object of this name.
        """
        name = body["metadata"]["name"]
        try:
            query = {"fieldManager": FIELD_MANAGER}
            return await self._api.call("POST", path, body=body, query=query, starts=True)
        except ApiError as error:
            if error.status != 409:
                raise _refused(error, f"{body['kind']} {name}") from error
        existing = await self._read(f"{path}/{name}")
        if existing is None:
            raise ConflictError(f"{body['kind']} {name} existed and has been deleted meanwhile")
        owners = existing["metadata"].get("ownerReferences") or ()
        if not any(owner.get("uid") == job.uid for owner in owners):
            if any(owner.get("kind") == KIND and owner.get("name") == job.name for owner in owners):
                raise ConflictError(f"{body['kind']} {name} of the previous FineTuneJob is not gone yet")
            raise ChildRejectedError(
                f"{body['kind']} {name} must belong to this FineTuneJob, but an object of another owner has this name; "
                "delete or rename it",
                kind=f"NameTaken/{body['kind']}/{name}",
            )
        return existing

    async def rehearse(self, job: JobRecord, body: Mapping[str, Any]) -> str | None:
        """Let the API server check a Job or a claim of `job` without storing it; returns why it is invalid.

        It is None for a quota, a policy, and a webhook that knows no dry run. The request is outside the rate limit,
        because it is rare and a new job waits for it. Raises ApiError if there is no answer.
        """
        kind = body["kind"]
        path = (
            claims_path(job.namespace) if kind == "PersistentVolumeClaim" else child_path(job.namespace, kind)
        )
        query = {"fieldManager": FIELD_MANAGER, "dryRun": "All"}
        try:
            await self._api.call("POST", path, body=body, query=query, limited=False)
        except ApiError as error:
            if error.status in UNANSWERED or error.status == 429:
                raise
            found = _refused(error, f"{body['kind']} {body['metadata']['name']}")
            invalid = isinstance(found, ChildRejectedError) and found.final
            return str(found) if invalid and _NO_DRY_RUN not in error.message else None
        return None

    async def suspend_job(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        suspend: bool,
        resource_version: str = "",
        kind: str = "Job",
    ) -> dict[str, Any]:
        """Set `suspend` of a batch/v1 Job or of a JobSet, and record on it whether the operator suspends it.

        Raises ConflictError if the Job of this uid does not exist any more, or if it is not of `resource_version`.
        """
        metadata: dict[str, Any] = {
            "uid": uid,
            "annotations": {SUSPENSION_ANNOTATION: "true" if suspend else "false"},
        }
        if resource_version:
            metadata["resourceVersion"] = resource_version
        body = {"metadata": metadata, "spec": {"suspend": suspend}}
        try:
            return await self._api.call(
                "PATCH",
                f"{child_path(namespace, kind)}/{name}",
                body=body,
                content_type=MERGE,
                query={"fieldManager": FIELD_MANAGER},
            )
        except ApiError as error:
            # The API server responds with 422 if the Job of this name has another uid.
            if error.status in {404, 409, 422}:
                raise ConflictError(f"{kind} {namespace}/{name} has changed: {error}") from error
            raise _refused(error, f"spec.suspend={str(suspend).lower()} of {kind} {name}") from error

    async def expand_claim(self, namespace: str, name: str, uid: str, size: str) -> dict[str, Any]:
        """Raise the storage request of a claim. Raises ConflictError if the claim of this uid does not exist any more."""
        body = {"metadata": {"uid": uid}, "spec": {"resources": {"requests": {"storage": size}}}}
        try:
            return await self._api.call(
                "PATCH",
                f"{claims_path(namespace)}/{name}",
                body=body,
                content_type=MERGE,
                query={"fieldManager": FIELD_MANAGER},
            )
        except ApiError as error:
            if error.status in {404, 409}:
                raise ConflictError(
                    f"PersistentVolumeClaim {namespace}/{name} has changed: {error}"
                ) from error
            raise _refused(error, f"the larger size of PersistentVolumeClaim {name}") from error

    async def delete(self, path: str, uid: str, *, grace_seconds: int | None = None) -> bool:
        """Delete the object of this uid, and its dependents in the background; returns False if there is none.

        Raises ConflictError if the object has another uid, or if the API server could not compare it. To take that for the
        absence of the object would leave it until the next full list.
        """
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self._api.call("DELETE", path, body=body)
        except ApiError as error:
            if error.status == 404:
                return False
            if error.status == 409:
                raise ConflictError(f"{path.rpartition('/')[2]} has changed: {error}") from error
            raise _refused(error, f"the deletion of {path.rpartition('/')[2]}") from error
        return True

    async def _list_children(self, namespace: str, project: Project[Item], labels: str) -> ObjectList[Item]:
        """Jobs, and JobSets if they are used. The version is that of the older list: what is newer may still exist."""
        jobs = await self._api.list_all(batch_jobs_path(namespace), project, labels=labels)
        if not self.job_sets:
            return jobs
        sets = await self._api.list_all(job_sets_path(namespace), project, labels=labels)
        version = min(jobs.resource_version, sets.resource_version)
        return ObjectList([*jobs.items, *sets.items], version)

    async def _read(self, path: str) -> dict[str, Any] | None:
        try:
            return await self._api.call("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise


def _refused(error: ApiError, what: str) -> ApiError | ChildRejectedError:
    """The error to raise for a failed write of `what`: `error` itself if it is no refusal."""
    refusal = refusal_of(error)
    if refusal is None:
        return error
    remedy = (
        "create another FineTuneJob with a spec that it accepts"
        if refusal.final
        else "free the quota or change the policy"
    )
    kind = f"{what.partition(' ')[0]}/{refusal.kind}"
    message = f"the API server rejected {what}: {refusal.message}; {remedy}"
    return ChildRejectedError(message, kind=kind, final=refusal.final)


def _path(prefix: str, namespace: str, plural: str) -> str:
    return f"{prefix}/namespaces/{namespace}/{plural}" if namespace else f"{prefix}/{plural}"
