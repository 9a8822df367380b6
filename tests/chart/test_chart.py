"""The Helm chart renders valid, least privileged and restricted objects, and its values are checked and documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from finetune_operator.api.showback import FOREIGN_LABELS, FOREIGN_PREFIXES, ShowbackKey
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.cluster import rbac
from finetune_operator.lifecycle.pod_defaults import defaults_digest
from finetune_operator.manifests.jobs import build_job
from finetune_operator.settings import Settings, parse_settings
from finetune_operator.sizing.hosts import HostNeeds
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from tests.support.chart import CHART, NAMESPACE, VALUES_FILES, Manifest, helm, only, render
from tests.support.operator import make_job, make_spec
from tests.support.repository import ROOT

# kubernetes-validate knows only Kubernetes' own kinds, but these are from the Prometheus operator.
FOREIGN_KINDS = {"PodMonitor", "PrometheusRule", "ServiceMonitor"}
OTHER_NAMESPACES = {"argocd", "monitoring"}
"""Where Argo CD, Grafana and Alertmanager look for their configuration, in full-values.yaml."""
each_values_file = pytest.mark.parametrize("values", VALUES_FILES, ids=lambda path: path.stem)


def pod_spec(objects: list[Manifest]) -> dict[str, Any]:
    spec: dict[str, Any] = only(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def settings_text(objects: list[Manifest]) -> str:
    text: str = only(objects, "ConfigMap", "-settings")["data"]["settings.json"]
    return text


def settings(objects: list[Manifest]) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(settings_text(objects))
    return parsed


def leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in values.items():
        path = f"{prefix}{key}"
        found |= leaves(value, f"{path}.") if isinstance(value, dict) and value else {path}
    return found


@each_values_file
def test_lints_strictly(values: Path) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(values))
    assert done.returncode == 0, done.stdout + done.stderr


@each_values_file
def test_rendered_objects_are_valid_kubernetes(values: Path) -> None:
    objects = render("--values", str(values))
    checked = [item for item in objects if item["kind"] not in FOREIGN_KINDS]
    assert checked
    for item in checked:
        kubernetes_validate.validate(item, "1.36", strict=True)


@each_values_file
def test_objects_carry_the_recommended_labels(values: Path) -> None:
    for item in render("--values", str(values)):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "finetune-operator"
        assert labels["app.kubernetes.io/instance"] == "ft"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


@each_values_file
def test_namespaced_objects_are_in_the_release_namespace_or_a_watched_one(values: Path) -> None:
    cluster_kinds = {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    for item in render("--values", str(values)):
        if item["kind"] not in cluster_kinds:
            assert item["metadata"]["namespace"] in {NAMESPACE, "team-a", "team-b", *OTHER_NAMESPACES}


@each_values_file
def test_pod_meets_the_restricted_level_with_a_read_only_root(values: Path) -> None:
    spec = pod_spec(render("--values", str(values)))
    security = spec["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] == 65532
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert all({"configMap", "emptyDir"} & volume.keys() for volume in spec["volumes"])
    assert not any(spec.get(member) for member in ("hostNetwork", "hostPID", "hostIPC"))


def test_the_operator_knows_its_own_pod() -> None:
    (container,) = pod_spec(render())["containers"]
    sources = {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container["env"][:-1]}
    assert sources == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_IP": "status.podIP",
        "NODE_NAME": "spec.nodeName",
    }


def test_the_operators_pod_may_leave_its_user_to_the_cluster_or_get_another_one() -> None:
    plain = pod_spec(render())["securityContext"]
    assigned = pod_spec(render("--set", "securityContext.ids=Assigned"))["securityContext"]
    ids = {"runAsUser", "runAsGroup", "fsGroup"}
    assert assigned == {key: value for key, value in plain.items() if key not in ids}
    given = "securityContext.runAsUser=1000650000,securityContext.seccompProfile.type=RuntimeDefault"
    assert pod_spec(render("--set", given))["securityContext"] == {**plain, "runAsUser": 1000650000}
    with pytest.raises(ValueError, match="securityContext must have no runAsUser"):
        render("--set", "securityContext.ids=Assigned,securityContext.runAsUser=5")


def test_crd_is_the_one_in_the_crds_folder() -> None:
    source = yaml.safe_load((ROOT / "crds/finetunejobs.yaml").read_text())
    rendered = only(render(), "CustomResourceDefinition")
    assert (CHART / "files/crds").resolve() == ROOT / "crds"
    assert rendered["spec"] == source["spec"]
    assert rendered["metadata"]["name"] == source["metadata"]["name"]


def test_crd_outlives_the_release_by_default() -> None:
    kept = only(render(), "CustomResourceDefinition")
    dropped = only(render("--set", "crds.keep=false"), "CustomResourceDefinition")
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in dropped["metadata"]


def test_crd_can_be_left_to_another_tool() -> None:
    assert "CustomResourceDefinition" not in {item["kind"] for item in render("--set", "crds.enabled=false")}


def test_package_holds_the_crd_itself(tmp_path: Path) -> None:
    """A link would point to a file outside the packaged chart."""
    done = helm("package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.iterdir()
    shown = helm("template", "ft", str(package), "--set", "rbac.create=false")
    assert "name: finetunejobs.finetune.dev" in shown.stdout


def rules(role: Manifest) -> set[tuple[str, str, frozenset[str]]]:
    return {
        (group, resource, frozenset(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def declared(wanted: tuple[rbac.Rule, ...]) -> set[tuple[str, str, frozenset[str]]]:
    return {(group, resource, frozenset(verbs)) for group, resource, verbs in wanted}


def test_cluster_role_grants_exactly_what_the_operator_declares() -> None:
    objects = render()
    role = only(objects, "ClusterRole", "-operator")
    assert rules(role) == declared(rbac.WATCHED_RULES)
    assert rules(only(objects, "Role", "-leases")) == declared(rbac.LEASE_RULES)
    assert rules(only(objects, "ClusterRole", "-places")) == declared(rbac.CLUSTER_RULES)
    binding = only(objects, "ClusterRoleBinding", "-operator")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = only(objects, "ServiceAccount")["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
    assert pod_spec(objects)["serviceAccountName"] == account


def test_only_a_chart_with_job_sets_grants_them() -> None:
    wanted = declared((*rbac.WATCHED_RULES, *rbac.JOB_SET_RULES))
    assert rules(only(render("--set", "jobSets=true"), "ClusterRole", "-operator")) == wanted


def test_watched_namespaces_need_a_cluster_role_for_cluster_scoped_reads_alone() -> None:
    objects = render("--set", "watchNamespaces={team-a,team-b},rbac.aggregateRoles=false")
    assert rules(only(objects, "ClusterRole")) == declared(rbac.CLUSTER_RULES)
    assert all(verbs <= {"get", "list", "watch"} for _, _, verbs in rules(only(objects, "ClusterRole")))


def test_each_watched_namespace_has_a_role_and_nothing_else_has_one() -> None:
    watched = ["team-a", "team-b"]
    objects = render(
        "--set", "watchNamespaces={team-a,team-b},rbac.aggregateRoles=false,rbac.clusterReads=false"
    )
    assert not {"ClusterRole", "ClusterRoleBinding"} & {item["kind"] for item in objects}
    named = {
        (item["kind"], item["metadata"]["namespace"]): item
        for item in objects
        if item["kind"] in {"Role", "RoleBinding"} and item["metadata"]["name"].endswith("-operator")
    }
    assert set(named) == {(kind, namespace) for kind in ("Role", "RoleBinding") for namespace in watched}
    for namespace in watched:
        role, binding = named["Role", namespace], named["RoleBinding", namespace]
        assert rules(role) == declared(rbac.WATCHED_RULES)
        assert binding["roleRef"] == {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "Role",
            "name": role["metadata"]["name"],
        }
        (subject,) = binding["subjects"]
        assert subject["namespace"] == NAMESPACE
    assert only(objects, "Role", "-leases")["metadata"]["namespace"] == NAMESPACE
    assert settings(objects)["watchNamespaces"] == watched


def test_namespace_admins_may_use_the_resource() -> None:
    objects = render()
    view, edit = only(objects, "ClusterRole", "-view"), only(objects, "ClusterRole", "-edit")
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert not any("status" in resource for _, resource, _ in rules(edit))


def test_only_the_operators_pod_mounts_a_token() -> None:
    objects = render()
    assert only(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod_spec(objects)["automountServiceAccountToken"] is True


def test_settings_agree_with_the_values() -> None:
    full = settings(render("--values", str(CHART / "ci/full-values.yaml")))
    assert full["trainer"]["image"] == "registry.example.com/ml/finetune-trainer:0.1.0-cu128"
    assert full["trainer"]["device"] == "cpu"
    assert full["trainer"]["telemetryPort"] == 19500
    assert full["trainer"]["huggingFaceEndpoint"] == "https://hub.example.com"
    assert full["trainer"]["limits"] == {
        "datasetBytes": 10737418240,
        "downloadSeconds": 3600,
        "allowPrivateAddresses": True,
    }
    assert full["trainer"]["network"]["noProxy"] == ".svc,.cluster.local,10.0.0.0/8"
    assert full["trainer"]["network"]["caBundle"]["configMapKeyRef"]["name"] == "corporate-ca"
    assert full["metricsPort"] == 18080
    assert full["cost"]["labels"] == ["team", "example.com/costCenter"]
    assert [entry["perGpuHour"] for entry in full["cost"]["prices"]] == [0.24, "0.71", 2]
    assert full["logLevel"] == "DEBUG"


@each_values_file
def test_operator_understands_the_settings(values: Path) -> None:
    parsed = parse_settings(settings_text(render("--values", str(values))))
    assert parsed.trainer.image.startswith(
        ("docker.io/finetune/trainer", "registry.example.com/ml/finetune-trainer")
    )


def test_default_values_are_the_defaults_of_the_operator() -> None:
    """The file also names every setting. Otherwise a value of the chart would have no effect."""
    rendered = settings(render())
    defaults = Settings.model_validate({"trainer": {"image": rendered["trainer"]["image"]}})
    assert Settings.model_validate(rendered) == defaults
    expected = defaults.model_dump(mode="json", by_alias=True)
    # The chart has empty values where the settings have none.
    assert rendered["trainer"].pop("network").keys() == expected["trainer"].pop("network").keys()
    assert rendered["trainer"].pop("tracking").keys() == expected["trainer"].pop("tracking").keys()
    assert (rendered["cost"].pop("links"), expected["cost"].pop("links").keys()) == (
        {},
        {"withinNode", "betweenNodes"},
    )
    assert rendered == expected


def test_the_chart_and_the_operator_refuse_the_same_keys_for_showback() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    key = Draft202012Validator(schema["properties"]["cost"]["properties"]["labels"]["items"])
    allowed = TypeAdapter(ShowbackKey)
    for candidate in (*FOREIGN_LABELS, *(f"{prefix}x" for prefix in FOREIGN_PREFIXES)):
        assert not key.is_valid(candidate), candidate
    for candidate in ("team", "example.com/costCenter", "app.kubernetes.io/part-of"):
        assert key.is_valid(candidate)
        assert allowed.validate_python(candidate) == candidate


def test_changed_settings_start_new_pods() -> None:
    def checksum(*arguments: str) -> str:
        template = only(render(*arguments), "Deployment")["spec"]["template"]
        found: str = template["metadata"]["annotations"]["checksum/settings"]
        return found

    assert checksum() == checksum()
    assert checksum() != checksum("--set", "workers=9")


def test_pods_get_the_defaults_that_the_chart_renders() -> None:
    """The whole way: values, settings file, operator, Job."""
    trainer = parse_settings(settings_text(render("--values", str(CHART / "ci/full-values.yaml")))).trainer
    spec, job = FineTuneJobSpec.parse(make_spec()), make_job()
    host = HostNeeds("2", 8 * 2**30, "because", 2**28, 2**30)
    for stage in WORK_STAGES:
        body = build_job(job, spec, stage, 0, {}, trainer, host=host)
        kubernetes_validate.validate(body, "1.36", strict=True)
        pod = body["spec"]["template"]["spec"]
        train = stage is Stage.TRAIN
        assert pod["securityContext"]["runAsUser"] == 1000650000
        assert pod["containers"][0]["resources"]["limits"]["cpu"] == ("8" if train else "2")
        assert pod["runtimeClassName"] == ("nvidia" if train else "kata")
        assert pod["nodeSelector"].get("kubernetes.io/os") == (None if train else "linux")
        assert pod["nodeSelector"].get("kubernetes.io/arch") == ("amd64" if stage is Stage.PREPARE else None)


def test_an_emptied_default_stays_empty() -> None:
    none = "trainer.podDefaults.prepare=null,trainer.podDefaults.merge=null"
    assert settings(render("--set", none))["trainer"]["podDefaults"] == {}
    other = render("--set", r"trainer.podDefaults.prepare.nodeSelector.kubernetes\.io/os=null")
    assert "prepare" not in json.dumps(
        settings(other)["trainer"]["podDefaults"]["prepare"].get("nodeSelector")
    )


def test_values_of_an_earlier_release_leave_their_defaults_to_the_operator() -> None:
    """`helm upgrade --reuse-values` brings no values that the earlier chart did not have."""
    rendered = render("--set", "trainer.podDefaults=null,policy=null")
    assert "podDefaults" not in settings(rendered)["trainer"]
    assert settings(rendered)["policy"] == {}
    assert parse_settings(settings_text(rendered)).trainer.defaults.prepare.node_selector


def test_new_pod_defaults_do_not_restart_running_stages_of_an_upgraded_operator() -> None:
    """Jobs of an operator without pod defaults have no digest of them."""
    trainer = parse_settings(settings_text(render())).trainer
    assert {defaults_digest(trainer, stage) for stage in WORK_STAGES} == {""}


def test_ports_of_pod_probes_and_settings_agree() -> None:
    objects = render("--values", str(CHART / "ci/full-values.yaml"))
    (container,) = pod_spec(objects)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": settings(objects)["metricsPort"], "health": settings(objects)["healthPort"]}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert container["startupProbe"]["httpGet"] == container["livenessProbe"]["httpGet"]


def test_a_replica_has_minutes_to_begin_before_it_is_restarted() -> None:
    """On a machine without free CPUs the process opens its port late; a restart would begin again, without end."""
    (container,) = pod_spec(render())["containers"]
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
    assert liveness["periodSeconds"] * liveness["failureThreshold"] <= 60


def test_the_operator_gets_more_variables_after_its_own() -> None:
    arguments = ("extraEnv[0].name=HTTPS_PROXY", "extraEnv[0].value=http://proxy:3128")
    container = only(render("--set", ",".join(arguments)), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert container["env"][-1] == {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    assert {entry["name"] for entry in container["env"]} >= {"POD_NAME", "FINETUNE_OPERATOR_SETTINGS"}


def test_digest_wins_over_the_tag() -> None:
    digest = f"sha256:{'0' * 64}"
    (container,) = pod_spec(render("--set", f"image.tag=v1,image.digest={digest}"))["containers"]
    assert container["image"] == f"docker.io/finetune/operator@{digest}"


def test_tag_defaults_to_the_charts_application_version() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    objects = render()
    (container,) = pod_spec(objects)["containers"]
    assert container["image"] == f"docker.io/finetune/operator:{version}"
    assert settings(objects)["trainer"]["image"] == f"docker.io/finetune/trainer:{version}"


def test_service_monitor_budget_and_policy_select_the_pods_of_the_deployment() -> None:
    objects = render("--values", str(CHART / "ci/full-values.yaml"))
    selector = only(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    assert only(objects, "Service")["spec"]["selector"] == selector
    assert only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selector
    assert only(objects, "NetworkPolicy", "operator")["spec"]["podSelector"]["matchLabels"] == selector
    monitor = only(objects, "ServiceMonitor")["spec"]
    assert (
        monitor["selector"]["matchLabels"].items() <= only(objects, "Service")["metadata"]["labels"].items()
    )
    assert monitor["endpoints"][0]["honorLabels"] is True


def test_the_pod_monitor_selects_the_stages_of_the_served_namespaces() -> None:
    objects = render("--values", str(CHART / "ci/full-values.yaml"))
    monitor = only(objects, "PodMonitor")["spec"]
    trainer = parse_settings(settings_text(objects)).trainer
    spec = FineTuneJobSpec.parse(make_spec())
    host = HostNeeds("2", 8 * 2**30, "because", 2**28, 2**30)
    for stage in WORK_STAGES:
        template = build_job(make_job(), spec, stage, 0, {}, trainer, host=host)["spec"]["template"]
        assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        ports = template["spec"]["containers"][0]["ports"]
        assert [port["name"] for port in ports] == [monitor["podMetricsEndpoints"][0]["port"]]
    assert monitor["namespaceSelector"] == {"any": True}
    named = render("--set", "podMonitor.enabled=true,watchNamespaces={a,b}")
    assert only(named, "PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["a", "b"]}


def test_network_policy_lets_the_operator_poll_every_telemetry_port() -> None:
    objects = render("--values", str(CHART / "ci/full-values.yaml"))
    first = settings(objects)["trainer"]["telemetryPort"]
    ports = [rule["ports"][0] for rule in only(objects, "NetworkPolicy", "operator")["spec"]["egress"]]
    assert {"port": first, "endPort": first + 9, "protocol": "TCP"} in ports


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("replica=2", "replica"),
        ("trainer.device=gpu", "trainer/device"),
        ("trainer.limits.datasetbytes=1", "datasetbytes"),
        ("image.digest=sha256:12", "image/digest"),
        ("watchNamespaces[0]=Team_A", "watchNamespaces/0"),
        ("watchNamespaces={a,a}", "watchNamespaces"),
        ("logLevel=TRACE", "logLevel"),
        ("trainer.huggingFaceEndpoint=hub.example.com", "trainer/huggingFaceEndpoint"),
        ("trainer.network.httpsProxy=http://user:password@proxy", "trainer/network/httpsProxy"),
        ("trainer.network.proxySecretRef.name=only", "trainer/network/proxySecretRef"),
        ("trainer.network.caBundle.configMapKeyRef.name=only", "trainer/network/caBundle"),
        ("trainer.network.retrySeconds=-1", "trainer/network/retrySeconds"),
        ("trainer.resources.train.memory=24GB", "trainer/resources/train/memory"),
        ("trainer.podDefaults.securityContext.runAsUser=0", "podDefaults/securityContext/runAsUser"),
        ("trainer.podDefaults.securityContext.fsGroup=0", "podDefaults/securityContext/fsGroup"),
        ("trainer.podDefaults.securityContext.privileged=true", "'privileged' not allowed"),
        ("trainer.podDefaults.securityContext.seccompProfile.type=Unconfined", "seccompProfile/type"),
        ("trainer.podDefaults.securityContext.seccompProfile.type=Localhost", "localhostProfile"),
        ("trainer.podDefaults.securityContext.seLinuxOptions.type=spc_t", "seLinuxOptions/type"),
        ("trainer.podDefaults.hostNetwork=true", "'hostNetwork' not allowed"),
        ("trainer.podDefaults.volumes[0].name=x", "'volumes' not allowed"),
        ("trainer.podDefaults.train.securityContext.runAsUser=5", "'securityContext' not allowed"),
        ("trainer.podDefaults.cpuLimit=lots", "podDefaults/cpuLimit"),
        ("trainer.podDefaults.ephemeralStorage=0", "podDefaults/ephemeralStorage"),
        ("trainer.podDefaults.tolerations[0].effect=NoSchedule", "podDefaults/tolerations/0"),
        (
            "trainer.podDefaults.securityContext.ids=Assigned,trainer.podDefaults.securityContext.fsGroup=5",
            "must have no runAsUser, runAsGroup and fsGroup with ids: Assigned",
        ),
        (
            r"trainer.podDefaults.labels.finetune\.dev/job=x",
            "podDefaults.labels must not use keys that belong to the operator",
        ),
        (
            r"trainer.podDefaults.merge.annotations.finetune\.dev/run=x",
            "podDefaults.merge.annotations must not use keys",
        ),
        (
            r"trainer.podDefaults.objectLabels.kueue\.x-k8s\.io/queue-name=x",
            "must not use keys of Kueue",
        ),
        ("cost.currency=euro", "cost/currency"),
        ("cost.prices[0].perGpuHour=1", "cost.currency must be the ISO 4217 code"),
        ("cost.currency=EUR,cost.prices[0].currency=USD", "cost/prices/0"),
        ("cost.currency=EUR,cost.prices[0].perGpuHour=-1", "cost/prices/0/perGpuHour"),
        ("cost.currency=EUR,cost.prices[0].perGpuHour=cheap", "cost/prices/0/perGpuHour"),
        ("cost.speeds[0].product=L4", "cost/speeds/0"),
        ("cost.links.withinNode=0", "cost/links/withinNode"),
        ("cost.links.nvlink=300", "cost/links"),
        (r"cost.labels[0]=argocd\.argoproj\.io/instance", "cost/labels/0"),
        (r"cost.labels[0]=app\.kubernetes\.io/name", "cost/labels/0"),
        ("policy.limits.images[0]=x", "'images' not allowed"),
        ("policy.limits.gpus=0", "policy/limits/gpus"),
        ("policy.limits.tolerations[0].effect=NoSchedule", "policy/limits/tolerations/0"),
        ("policy.limits.endpointHosts[0]=https://a", "policy/limits/endpointHosts/0"),
        ("policy.limits.modelSources[0]=url", "policy/limits/modelSources/0"),
        ("policy.exceptions[0].namespaces[0]=a", "policy/exceptions/0"),
        ("extraEnv[0].name=POD_NAME", "extraEnv/0/name"),
        ("extraEnv[0].value=x", "extraEnv/0"),
        ("replicas=2,leaderElection.enabled=false", "replicas must be at most 1"),
        ("serviceAccount.create=false", "serviceAccount.name must be given"),
    ],
)
def test_wrong_values_are_rejected_by_name(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render("--set", argument)


def test_one_replica_without_election_is_never_doubled() -> None:
    objects = render("--set", "replicas=1,leaderElection.enabled=false")
    assert only(objects, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert not any(item["metadata"]["name"].endswith("-leases") for item in objects)


def referenced(definitions: dict[str, Any], reference: str) -> dict[str, Any]:
    found = definitions
    for step in reference.removeprefix("#/definitions/").split("/"):
        found = found[step]
    return found


def schema_leaves(schema: dict[str, Any], definitions: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in schema["properties"].items():
        field = referenced(definitions, value["$ref"]) if "$ref" in value else value
        path = f"{prefix}{name}"
        found |= schema_leaves(field, definitions, f"{path}.") if "properties" in field else {path}
    return found


def test_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = leaves(yaml.safe_load((CHART / "values.yaml").read_text()))
    known = schema_leaves(schema, schema["definitions"])
    blocks = {f"trainer.podDefaults.{name}" for name in ("prepare", "train", "merge", "securityContext")}
    blocks |= {"securityContext"}
    blocks |= {"policy.limits", "cost.links"}
    blocks |= {f"alertmanager.{name}" for name in ("slack", "email", "webhook")}
    free = {"resources.requests", "resources.limits", "trainer.podDefaults.nodeSelector", *blocks}

    def outer(paths: set[str]) -> set[str]:
        """Paths up to the free-form mappings, whose members the file does not list."""
        return {
            next((parent for parent in free if f"{path}.".startswith(f"{parent}.")), path) for path in paths
        }

    assert outer(known) - {"global", "resources.claims"} == outer(values)


def test_notes_warn_about_risky_values() -> None:
    done = helm(
        "install", "ft", str(CHART), "--dry-run=client", "--set", "trainer.limits.allowPrivateAddresses=true"
    )
    assert "Warning: trainer.limits.allowPrivateAddresses" in done.stdout, done.stderr
