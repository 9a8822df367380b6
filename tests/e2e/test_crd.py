"""The CRD on a real API server: accepted and rejected jobs, messages of rejections, and immutable specs.

Each case is one change of a valid FineTuneJob. Nothing runs: the objects are only validated, or deleted at the end.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster.kubectl import Kubectl

from tests.support.e2e.crds import await_established
from tests.support.repository import ROOT

pytestmark = pytest.mark.cluster

NAME = "finetunejobs.finetune.dev"
ABSENT = object()
CLAIM = {"claimName": "models"}


@pytest.fixture(scope="module")
def crd(kubectl: Kubectl) -> None:
    """Install the CRD. It is not removed: other tests and jobs of this cluster may use it."""
    kubectl("apply", "--server-side", "--force-conflicts", f"--filename={ROOT / 'crds/finetunejobs.yaml'}")
    await_established(kubectl)


@pytest.fixture
def room(crd: None, kubectl: Kubectl, namespace: str) -> Kubectl:
    """Kubectl in a fresh namespace of a cluster that has the CRD."""
    del crd
    return kubectl.within(namespace)


@pytest.fixture(scope="module")
def validator(crd: None, kubectl: Kubectl) -> Kubectl:
    """Kubectl in a namespace that always exists, for requests that create nothing."""
    del crd
    return kubectl.within("default")


def manifest(**changes: Any) -> dict[str, Any]:
    """Return a valid FineTuneJob with some fields changed; `a__b=value` sets spec.a.b, and ABSENT removes it."""
    job: dict[str, Any] = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "subject"},
        "spec": {
            "model": {"source": {"persistentVolumeClaim": {**CLAIM, "path": "SmolLM2"}}},
            "dataset": {"source": {"configMap": {"name": "rows", "key": "train.jsonl"}}},
            "output": {"destination": {"persistentVolumeClaim": dict(CLAIM)}},
            # The operator of this cluster, if there is one, must not start it.
            "suspend": True,
        },
    }
    for path, value in changes.items():
        parent = job["spec"]
        *parts, last = path.split("__")
        for part in parts:
            parent = parent.setdefault(part, {})
        if value is ABSENT:
            del parent[last]
        else:
            parent[last] = copy.deepcopy(value)
    return job


def refusal(kubectl: Kubectl, job: dict[str, Any]) -> str:
    """Return the API server's reason for rejecting `job`, or "" if it is accepted. Nothing is stored."""
    done = kubectl.run(
        "create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=json.dumps(job)
    )
    return "" if done.returncode == 0 else done.stderr


VALID = {
    "the smallest": {},
    "hub model with token": {
        "model__source": {
            "huggingFace": {"repository": "org/name", "tokenSecretRef": {"name": "hub", "key": "token"}}
        }
    },
    "number of GPUs to choose": {"resources__maximumGpus": 64},
    "number of pods to choose": {"resources__maximumGpus": 7, "resources__gpusPerNode": 2},
    "number of GPUs that share weights": {
        "training__parallelism": "FullyShard",
        "resources__maximumGpus": 2,
    },
    "url dataset": {"dataset__source": {"url": {"secretKeyRef": {"name": "rows", "key": "url"}}}},
    "validation source": {
        "dataset__validation": {"source": {"configMap": {"name": "rows", "key": "held-out"}}}
    },
    "hub dataset": {
        "dataset__source": {
            "huggingFace": {
                "repository": "org/name",
                "configuration": "20220301.en",
                "split": "train.clean",
                "tokenSecretRef": {"name": "hub", "key": "token"},
            }
        }
    },
    "file of a hub": {"dataset__source": {"huggingFace": {"repository": "org/name", "path": "data/a b.csv"}}},
    "S3 dataset": {
        "dataset__source": {
            "s3": {
                "uri": "s3://My_Bucket.1/a folder/b=c+d%20?.jsonl",
                "endpoint": "http://[fd00::1]:7070/path",
                "region": "eu-central-1",
                "secretRef": {"name": "store"},
            }
        }
    },
    "model and validation rows in clouds": {
        "model__source": {"gcs": {"uri": "gs://models/org/name/", "secretRef": {"name": "store"}}},
        "dataset__validation": {"source": {"azure": {"uri": "az://account1/$web/rows.parquet"}}},
    },
    "report settings": {
        "dataset__format": "ShareGPT",
        "dataset__targetPrompts": {"configMapKeyRef": {"name": "production", "key": "prompts.txt"}},
        "dataset__thresholds": {"minimumRows": 0, "mixedReasoningFraction": 0.5, "targetSimilarity": 1},
    },
    "model cache": {"modelCache": {"claimName": "bases"}},
    "network": {
        "network": {
            "httpsProxy": "http://proxy.example.com:3128",
            "httpProxy": "",
            "noProxy": ".svc, 10.0.0.0/8,[fd00::1]:443,*",
            "caBundle": {"configMapKeyRef": {"name": "corporate-ca", "key": "ca.crt"}},
            "retrySeconds": 0,
        }
    },
    "secret proxy": {"network": {"httpProxy": "", "proxySecretRef": {"name": "proxy", "key": "url"}}},
    "template arguments": {
        "model__chatTemplateArguments": {"flag": False, "share": 0.5, "count": 2, "text": "x"}
    },
    "epochs": {"training__epochs": 0.5},
    "steps": {"training__maximumSteps": 40},
    "dividing batches": {"training__effectiveBatchSize": 12, "training__microBatchSize": 4},
    "shared weights": {"training__parallelism": "FullyShard", "resources__gpus": 2},
    "replicas on one GPU": {"training__parallelism": "DataParallel"},
    "adapter alone": {"output__artifacts": ["Adapter"]},
    "all artifacts": {
        "output__artifacts": ["Adapter", "Merged", "BaseAsTrained"],
        "output__mergeOnto": "OriginalWeights",
        "evaluation__gate": "WithholdUnlessImproved",
    },
    "dots inside a segment": {"output__destination__persistentVolumeClaim__path": "a/b..c/.d"},
    "quantities": {"resources__train": {"cpu": 4, "memory": "24Gi"}, "resources__merge__cpu": "500m"},
    "toleration of everything": {"resources__tolerations": [{"operator": "Exists"}]},
    "pod labels": {"podTemplate__labels": {"team": "a", "example.com/cost-centre": "42"}},
    "pods of every stage": {
        "podTemplate": {
            "objectLabels": {"owner": "a"},
            "nodeSelector": {"pool": "a"},
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["15"]}]},
                {"matchExpressions": [{"key": "disk", "operator": "Exists"}]},
            ],
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "cpuLimit": 4,
            "ephemeralStorage": "3Gi",
            "ephemeralStorageLimit": "Request",
            "securityContext": {
                "runAsUser": 1000650000,
                "supplementalGroups": [5000],
                "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/a.json"},
                "appArmorProfile": {"type": "RuntimeDefault"},
                "seLinuxOptions": {"type": "container_t", "level": "s0:c1"},
            },
            "train": {"cpuLimit": "Request", "runtimeClassName": "nvidia", "labels": {"stage": "a"}},
        }
    },
    "assigned ids": {"podTemplate": {"securityContext": {"ids": "Assigned"}}},
    "recommended labels": {"podTemplate__labels": {"app.kubernetes.io/part-of": "platform"}},
    "queues": {"queueName": "gpus", "cpuQueueName": "cpus"},
    "queue of pods": {"podTemplate__labels": {"kueue.x-k8s.io/queue-name": "q"}},
    "existing workspace": {"workspace__existingClaim": "scratch"},
    "lifecycle": {"lifecycle": {"deadlineSeconds": 60, "retries": 0, "keepWorkspace": "Never"}},
}

INVALID = {
    "queue that is no label": ({"queueName": "team.gpus"}, "spec.queueName"),
    "long queue": ({"cpuQueueName": "q" * 64}, "spec.cpuQueueName"),
    "no model": ({"model": ABSENT}, "spec.model: Required value"),
    "no model source": (
        {"model__source": {}},
        "must give exactly one of persistentVolumeClaim, huggingFace, s3, gcs and azure",
    ),
    "two model sources": (
        {"model__source__huggingFace": {"repository": "org/name"}},
        "must give exactly one of persistentVolumeClaim, huggingFace, s3, gcs and azure",
    ),
    "two dataset sources": (
        {"dataset__source__url": {"secretKeyRef": {"name": "a", "key": "b"}}},
        "must give exactly one of configMap, persistentVolumeClaim, url, huggingFace, s3, gcs and azure",
    ),
    "no dataset source": (
        {"dataset__source": {}},
        "must give exactly one of configMap, persistentVolumeClaim, url, huggingFace, s3, gcs and azure",
    ),
    "S3 without a key": (
        {"dataset__source": {"s3": {"uri": "s3://bucket"}}},
        "must be s3://BUCKET/KEY",
    ),
    "user in a URI": (
        {"dataset__source": {"s3": {"uri": "s3://key:secret@bucket/rows"}}},
        "must be s3://BUCKET/KEY",
    ),
    "GCS of another scheme": (
        {"model__source": {"gcs": {"uri": "https://storage.googleapis.com/models/a"}}},
        "must be gs://BUCKET/KEY",
    ),
    "Azure without a container": (
        {"dataset__source": {"azure": {"uri": "az://account/rows"}}},
        "must be az://ACCOUNT/CONTAINER/KEY",
    ),
    "endpoint with a user": (
        {"dataset__source": {"s3": {"uri": "s3://bucket/a", "endpoint": "https://u:p@host"}}},
        "must be an http or https URL without user, query and fragment",
    ),
    "endpoint of the other clouds": (
        {"dataset__source": {"gcs": {"uri": "gs://bucket/a", "endpoint": "https://host"}}},
        'unknown field "spec.dataset.source.gcs.endpoint"',
    ),
    "file and configuration of a hub": (
        {"dataset__source": {"huggingFace": {"repository": "a", "path": "b", "configuration": "c"}}},
        "must give path or configuration, not both",
    ),
    "file of a hub in a parent folder": (
        {"dataset__source": {"huggingFace": {"repository": "a", "path": "../b"}}},
        "must be a relative path",
    ),
    "plain text": ({"dataset__format": "Text"}, "must not be Text: plain text has no answers to learn"),
    "unknown format": ({"dataset__format": "Chat"}, "Unsupported value"),
    "unknown threshold": (
        {"dataset__thresholds": {"leaked": 0}},
        'unknown field "spec.dataset.thresholds.leaked"',
    ),
    "threshold beyond everything": (
        {"dataset__thresholds": {"leakedFraction": 1.5}},
        "less than or equal to 1",
    ),
    "cache without a claim": ({"modelCache": {}}, "spec.modelCache.claimName: Required value"),
    "proxy with a password": (
        {"network": {"httpsProxy": "http://user:password@proxy:1"}},
        "spec.network.httpsProxy in body should match",
    ),
    "two proxies": (
        {"network": {"httpsProxy": "http://proxy:1", "proxySecretRef": {"name": "proxy", "key": "url"}}},
        "must give proxySecretRef, or httpsProxy and httpProxy, not both",
    ),
    "empty bundle": (
        {"network": {"caBundle": {}}},
        "must give exactly one of configMapKeyRef and secretKeyRef",
    ),
    "endless wait": ({"network": {"retrySeconds": 86401}}, "less than or equal to 86400"),
    "no validation": ({"dataset__validation": {}}, "must give exactly one of fraction and source"),
    "two validations": (
        {"dataset__validation": {"fraction": 0.1, "source": {"configMap": {"name": "a", "key": "b"}}}},
        "must give exactly one of fraction and source",
    ),
    "validation of everything": ({"dataset__validation__fraction": 0.9}, "less than or equal to 0.5"),
    "absolute path": ({"model__source__persistentVolumeClaim__path": "/models"}, "must be a relative path"),
    "path in a parent folder": (
        {"model__source__persistentVolumeClaim__path": "a/../../b"},
        "must be a relative path",
    ),
    "output in a parent folder": (
        {"output__destination__persistentVolumeClaim__path": ".."},
        "must be a relative path",
    ),
    "empty segment": (
        {"output__destination__persistentVolumeClaim__path": "a//b"},
        "must be a relative path",
    ),
    "dataset without path": (
        {"dataset__source": {"persistentVolumeClaim": dict(CLAIM)}},
        "spec.dataset.source.persistentVolumeClaim.path: Required value",
    ),
    "empty list as template argument": (
        {"model__chatTemplateArguments": {"a": []}},
        "chatTemplateArguments.a in body should have at least 1 items",
    ),
    "empty object as template argument": (
        {"model__chatTemplateArguments": {"a": {}}},
        "chatTemplateArguments.a in body should have at least 1 properties",
    ),
    "list as template argument": ({"model__chatTemplateArguments": {"a": [1]}}, "must have at most 0 items"),
    "epochs and steps": (
        {"training": {"epochs": 1, "maximumSteps": 1}},
        "must give epochs or maximumSteps, not both",
    ),
    "weights shared with nobody": (
        {"training__parallelism": "FullyShard"},
        "resources.maximumGpus must be at least 2 with training.parallelism FullyShard",
    ),
    "shared weights with DoRA": (
        {
            "training__parallelism": "FullyShard",
            "training__lora": {"variant": "DoRA"},
            "resources__gpus": 2,
        },
        "must have lora.variant Standard or RankStabilized",
    ),
    "unknown parallelism": ({"training__parallelism": "Pipeline"}, "spec.training.parallelism"),
    "batches that do not divide": ({"training__microBatchSize": 3}, "a multiple of microBatchSize"),
    "no learning": ({"training__learningRate": 0}, "should be greater than 0"),
    "learning rate as text": ({"training__learningRate": "2e-4"}, "must be of type number"),
    "unknown variant": (
        {"training__lora__variant": "Lora"},
        'supported values: "Standard", "RankStabilized", "DoRA"',
    ),
    "unknown field": ({"training__unheardOf": True}, 'unknown field "spec.training.unheardOf"'),
    "too many GPUs": ({"resources__gpus": 65}, "should be less than or equal to 64"),
    "GPUs of unequal pods": (
        {"resources__gpus": 6, "resources__gpusPerNode": 4},
        "must have gpus that are a multiple of gpusPerNode",
    ),
    "GPUs given and chosen": (
        {"resources__gpus": 2, "resources__maximumGpus": 4},
        "must have at most one of gpus and maximumGpus",
    ),
    "most GPUs below a pod": (
        {"resources__maximumGpus": 2, "resources__gpusPerNode": 4},
        "must have gpusPerNode of at most maximumGpus",
    ),
    "pod with more GPUs than rows": (
        {"resources__maximumGpus": 64, "resources__gpusPerNode": 17},
        "resources.gpusPerNode must be at most training.effectiveBatchSize",
    ),
    "no GPU at most": ({"resources__maximumGpus": 0}, "should be greater than or equal to 1"),
    "too many GPUs at most": ({"resources__maximumGpus": 65}, "should be less than or equal to 64"),
    "one GPU that shares weights": (
        {"training__parallelism": "FullyShard", "resources__maximumGpus": 1},
        "resources.maximumGpus must be at least 2 with training.parallelism FullyShard",
    ),
    "no GPU in a pod": ({"resources__gpusPerNode": 0}, "should be greater than or equal to 1"),
    "no memory": ({"resources__train__memory": "0"}, "must be more than 0"),
    "no quantity": ({"resources__train__memory": "lots"}, "should match"),
    "value of Exists": (
        {"resources__tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "must have no value with the operator Exists",
    ),
    "long label key": ({"podTemplate__labels": {"k" * 318: "v"}}, "must have keys of 1 to 317 characters"),
    "name that is no DNS name": (
        {"output__destination": {"persistentVolumeClaim": {"claimName": "a..b"}}},
        "claimName in body should match",
    ),
    "key that is no file name": (
        {"dataset__source": {"configMap": {"name": "rows", "key": ".."}}},
        "key in body should match",
    ),
    "label key with a space": ({"podTemplate__labels": {"a b": "v"}}, "must have keys of the form"),
    "annotation key with a long name": (
        {"podTemplate__annotations": {"k" * 300: "v"}},
        "must have keys of the form",
    ),
    "annotation of many bytes": (
        {"podTemplate__annotations": {"k": "\U0001f600" * 1025}},
        "must have values of at most 4096 bytes",
    ),
    "toleration of a key with a space": (
        {"podTemplate__tolerations": [{"key": "a b", "operator": "Exists"}]},
        "key in body should match",
    ),
    "value of a node label with a space": (
        {
            "podTemplate__nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b c"]}]}
            ]
        },
        "values[0] in body should match",
    ),
    "memory beyond every node": ({"resources__train__memory": "1" + "0" * 26 + "P"}, "must be at most 1Pi"),
    "CPUs beyond every node": ({"resources__merge__cpu": "100001"}, "must be at most 100k"),
    "resource of Kubernetes": (
        {"resources__gpuResourceName": "kubernetes.io/gpu"},
        "must be the name of an extended resource",
    ),
    "operator's label": ({"podTemplate__labels": {"finetune.dev/job": "x"}}, "must not use the prefixes"),
    "operator's annotation": (
        {"podTemplate__annotations": {"finetune.dev/run": "{}"}},
        "must not use the prefix",
    ),
    "label of the Job controller": ({"podTemplate__labels": {"job-name": "x"}}, "must not use the keys"),
    "label by which the operator finds its pods": (
        {"podTemplate__labels": {"app.kubernetes.io/managed-by": "x"}},
        "must not use the keys",
    ),
    "operator's label for one stage": (
        {"podTemplate__merge": {"labels": {"finetune.dev/stage": "train"}}},
        "must not use the prefixes",
    ),
    "queue of Jobs": (
        {"podTemplate__objectLabels": {"kueue.x-k8s.io/queue-name": "q"}},
        "because the operator finds and starts its Jobs itself",
    ),
    "root": ({"podTemplate__securityContext": {"runAsUser": 0}}, "greater than or equal to 1"),
    "group of root": (
        {"podTemplate__securityContext": {"supplementalGroups": [0]}},
        "greater than or equal to 1",
    ),
    "privileged": ({"podTemplate__securityContext": {"privileged": True}}, "unknown field"),
    "volumes": ({"podTemplate": {"volumes": []}}, "unknown field"),
    "unconfined": (
        {"podTemplate__securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        'supported values: "RuntimeDefault", "Localhost"',
    ),
    "profile without a name": (
        {"podTemplate__securityContext": {"appArmorProfile": {"type": "Localhost"}}},
        "must have localhostProfile exactly if the type is Localhost",
    ),
    "profile elsewhere": (
        {
            "podTemplate__securityContext": {
                "seccompProfile": {"type": "Localhost", "localhostProfile": "../a"}
            }
        },
        "must be a relative path",
    ),
    "SELinux type of a privileged container": (
        {"podTemplate__securityContext": {"seLinuxOptions": {"type": "spc_t"}}},
        "should match",
    ),
    "assigned and given ids": (
        {"podTemplate__securityContext": {"ids": "Assigned", "fsGroup": 5}},
        "must have no runAsUser, runAsGroup and fsGroup with ids: Assigned",
    ),
    "no CPU at all": ({"podTemplate__train": {"cpuLimit": "0"}}, "must be more than 0"),
    "values of Exists": (
        {
            "podTemplate__nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}
            ]
        },
        "must have no values with the operator Exists or DoesNotExist",
    ),
    "toleration of a stage": (
        {"podTemplate__prepare": {"tolerations": [{"effect": "NoSchedule"}]}},
        "must have the operator Exists when it has no key",
    ),
    "artifact twice": ({"output__artifacts": ["Adapter", "Adapter"]}, "Duplicate value"),
    "no artifact": ({"output__artifacts": []}, "should have at least 1 items"),
    "base alone": ({"output__artifacts": ["BaseAsTrained"]}, "must have Adapter or Merged"),
    "unknown gate": ({"evaluation__gate": "Never"}, "Unsupported value"),
    "two workspaces": (
        {"workspace": {"existingClaim": "a", "storageClassName": "b"}},
        "must give existingClaim or storageClassName, not both",
    ),
}

CHANGES = {
    "model": {"model": {"source": {"persistentVolumeClaim": {"path": "other"}}}},
    "added template argument": {"model": {"chatTemplateArguments": {"flag": True}}},
    "dataset": {"dataset": {"source": {"configMap": {"key": "other"}}}},
    "added prompts": {"dataset": {"targetPrompts": {"configMapKeyRef": {"name": "a", "key": "b"}}}},
    "threshold": {"dataset": {"thresholds": {"minimumRows": 1}}},
    "added model cache": {"modelCache": {"claimName": "bases"}},
    "added network": {"network": {"retrySeconds": 5}},
    "added queue": {"queueName": "gpus"},
    "added queue of CPUs": {"cpuQueueName": "cpus"},
    "added epochs": {"training": {"epochs": 1}},
    "removed training": {"training": None},
    "evaluation": {"evaluation": {"maximumRows": 10}},
    "gate": {"evaluation": {"gate": "WithholdIfWorse"}},
    "removed artifact": {"output": {"artifacts": ["Adapter"]}},
    "added node selector": {"resources": {"nodeSelector": {"a": "b"}}},
    "pod label": {"podTemplate": {"labels": {"team": "b"}}},
    "removed pod template": {"podTemplate": None},
    "workspace": {"workspace": {"size": "30Gi"}},
}


@pytest.mark.parametrize("changes", VALID.values(), ids=VALID.keys())
def test_valid_jobs_are_accepted(validator: Kubectl, changes: dict[str, Any]) -> None:
    assert refusal(validator, manifest(**changes)) == ""


@pytest.mark.parametrize(("changes", "message"), INVALID.values(), ids=INVALID.keys())
def test_invalid_jobs_are_refused_with_the_reason(
    validator: Kubectl, changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(validator, manifest(**changes))


@pytest.mark.parametrize(
    ("length", "message"), [(45, ""), (46, "metadata.name must be at most 45 characters")]
)
def test_names_leave_room_for_the_childrens(validator: Kubectl, length: int, message: str) -> None:
    job = manifest()
    job["metadata"]["name"] = "n" * length
    answer = refusal(validator, job)
    assert message in answer
    assert bool(message) == bool(answer)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_accepted(validator: Kubectl, example: Path) -> None:
    jobs = [
        item for item in yaml.safe_load_all(example.read_text()) if item and item["kind"] == "FineTuneJob"
    ]
    assert jobs
    for job in jobs:
        assert refusal(validator, job) == ""


@pytest.fixture(scope="module")
def stored(crd: None, kubectl: Kubectl) -> Iterator[Kubectl]:
    """Kubectl in a namespace with one suspended FineTuneJob named `subject`."""
    del crd
    bound = kubectl.within("default")
    job = manifest(podTemplate__labels={"team": "a"}, training__learningRate=0.0005)
    job["metadata"]["name"] = "crd-subject"
    bound.apply(job)
    yield bound
    bound("delete", "finetunejob", "crd-subject", "--wait=false")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_spec_does_not_change(stored: Kubectl, change: dict[str, Any]) -> None:
    patch = json.dumps({"spec": change})
    done = stored.run("patch", "finetunejob", "crd-subject", "--type=merge", f"--patch={patch}")
    assert done.returncode != 0
    (field,) = change
    assert f"{field} must not" in done.stderr


def test_absent_pod_template_cannot_be_added(room: Kubectl) -> None:
    room.apply(manifest())
    patch = '{"spec": {"podTemplate": {"labels": {"team": "a"}}}}'
    done = room.run("patch", "finetunejob", "subject", "--type=merge", f"--patch={patch}")
    assert "podTemplate must not be added or removed after creation" in done.stderr


def test_lifecycle_and_suspend_may_change(stored: Kubectl) -> None:
    patch = '{"spec": {"lifecycle": {"retries": 0, "keepChildrenSeconds": {"failure": 60}}}}'
    stored("patch", "finetunejob", "crd-subject", "--type=merge", f"--patch={patch}")
    spec = stored.json("get", "finetunejob", "crd-subject")["spec"]
    assert spec["lifecycle"] == {
        "retries": 0,
        "keepChildrenSeconds": {"success": 0, "failure": 60},
        "keepWorkspace": "OnFailure",
    }
    answer = stored(
        "patch",
        "ftj",
        "crd-subject",
        "--type=merge",
        '--patch={"spec":{"suspend":false}}',
        "--dry-run=server",
    )
    assert "patched" in answer


def test_applying_the_same_text_again_changes_nothing(stored: Kubectl) -> None:
    """Defaults are stored; a second apply must not count as a change of the spec."""
    before = stored.json("get", "finetunejob", "crd-subject")["metadata"]["generation"]
    job = manifest(podTemplate__labels={"team": "a"}, training__learningRate=0.0005)
    job["metadata"]["name"] = "crd-subject"
    stored.apply(job)
    assert stored.json("get", "finetunejob", "crd-subject")["metadata"]["generation"] == before


def test_defaults_are_stored(stored: Kubectl) -> None:
    spec = stored.json("get", "finetunejob", "crd-subject")["spec"]
    assert spec["dataset"]["validation"] == {"fraction": 0.1}
    assert spec["dataset"]["format"] == "Auto"
    assert spec["dataset"]["thresholds"]["minimumRows"] == 50
    assert spec["training"]["effectiveBatchSize"] == 16
    assert spec["training"]["lora"]["rank"] == 16
    assert spec["output"]["artifacts"] == ["Adapter", "Merged"]
    assert spec["output"]["mergeOnto"] == "TrainedWeights"
    assert spec["evaluation"]["gate"] == "Report"
    assert spec["resources"]["gpuResourceName"] == "nvidia.com/gpu"
    assert spec["workspace"] == {}
    assert not {"epochs", "maximumSteps", "microBatchSize"} & spec["training"].keys()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"huggingFace": {"repository": "org/name"}}, "org/name"),
        ({"persistentVolumeClaim": {**CLAIM, "path": "SmolLM2"}}, "SmolLM2"),
        ({"persistentVolumeClaim": CLAIM}, "models"),
        ({"s3": {"uri": "s3://models/org/name"}}, "s3://models/org/name"),
        ({"gcs": {"uri": "gs://models/org/name"}}, "gs://models/org/name"),
        ({"azure": {"uri": "az://account/models/name"}}, "az://account/models/name"),
    ],
)
def test_model_column_shows_what_the_source_has(room: Kubectl, source: dict[str, Any], shown: str) -> None:
    room.apply(manifest(model__source=source))
    heading, line = room("get", "finetunejobs").splitlines()
    assert heading.split() == ["NAME", "PHASE", "STAGE", "PROGRESS", "MODEL", "GPUS", "VERDICT", "AGE"]
    column = heading.index("MODEL")
    assert line[column:].split()[0] == shown


def test_explain_documents_the_fields(validator: Kubectl) -> None:
    assert "Peak learning rate of AdamW" in validator("explain", "finetunejob.spec.training.learningRate")
    assert "verdict" in validator("explain", "ftj.status.evaluation")


def test_a_job_that_an_older_crd_accepted_stays_updatable(room: Kubectl) -> None:
    """A stricter rule must not stop status writes, a suspension or a deadline of a job that is stored already."""
    document = (ROOT / "crds/finetunejobs.yaml").read_text()
    name = "pattern: ^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
    older = document.replace(name, "pattern: ^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$").replace("'1Pi'", "'1000Pi'")
    older = older.replace("key.matches('", "key.matches('.*|")
    job = manifest(
        output__destination={"persistentVolumeClaim": {"claimName": "a..b"}},
        resources__train__memory="2Pi",
        podTemplate={"labels": {"a b": "v"}},
    )
    try:
        room("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=older)
        eventually_created(room, job)
    finally:
        room("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=document)
    eventually_refused(room, job)
    # The answers are compared, because the operator writes its own status at any time.
    patch = '--patch={"spec": {"lifecycle": {"retries": 3}}}'
    spec = json.loads(room("patch", "finetunejob", "subject", "--type=merge", patch, "--output=json"))["spec"]
    assert spec["lifecycle"]["retries"] == 3
    patch = '--patch={"status": {"phase": "Suspended"}}'
    written = room(
        "patch", "finetunejob", "subject", "--type=merge", "--subresource=status", patch, "--output=json"
    )
    assert json.loads(written)["status"]["phase"] == "Suspended"


def eventually_created(kubectl: Kubectl, job: dict[str, Any]) -> None:
    """Create `job` as soon as the API server has the older rules."""
    deadline = time.monotonic() + 30
    while (found := refusal(kubectl, job)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found == ""
    kubectl("create", "--filename=-", stdin=json.dumps(job))


def eventually_refused(kubectl: Kubectl, job: dict[str, Any]) -> None:
    """Wait until the API server has its present rules again."""
    other = {**job, "metadata": {"name": "other"}}
    deadline = time.monotonic() + 30
    while not (found := refusal(kubectl, other)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "claimName in body should match" in found
