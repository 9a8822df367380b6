"""Command lines and configuration files of the cluster's programs; paths are those inside the namespaces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from devcluster.certificates import CONTROLLER_MANAGER, KUBELET, PROXY, SCHEDULER
from devcluster.layout import (
    API_PORT,
    INSIDE,
    NODE_ADDRESS,
    NODE_NAME,
    OPERATOR_NAMESPACE,
    PAUSE_IMAGE,
    POD_NETWORK,
    SERVICE_NETWORK,
    has_containerd_2,
    tool,
)

PKI = INSIDE / "pki"
CONTAINERD_SOCKET = INSIDE / "containerd.sock"
CONTAINERD_CONFIG = INSIDE / "containerd.toml"
AUDIT_POLICY = INSIDE / "audit-policy.json"
AUDIT_LOG = INSIDE / "log" / "audit.log"
RUNTIME_SPEC = INSIDE / "runtime-spec.json"
CNI_FOLDER = INSIDE / "cni"
REGISTRIES = INSIDE / "registries"
KUBELET_CONFIG = INSIDE / "kubelet.json"
PROXY_CONFIG = INSIDE / "kube-proxy.json"
ETCD_URL = "http://127.0.0.1:2379"


@dataclass(frozen=True)
class Component:
    """A long-running program of the cluster: the name of its log and its argv."""

    name: str
    argv: tuple[str, ...]


def _flags(name: str, **flags: str | int | bool | Path) -> Component:
    """Return the component `name` with `flags`; an underscore in a flag's name becomes a dash."""
    values = {
        key.replace("_", "-"): str(value).lower() if isinstance(value, bool) else value
        for key, value in flags.items()
    }
    return Component(name, (str(tool(name)), *(f"--{key}={value}" for key, value in values.items())))


def containerd() -> Component:
    """Run Debian's containerd, or containerd 2 if the environment says so, with a private root, state and socket."""
    program = str(tool("containerd")) if has_containerd_2() else "containerd"
    return Component("containerd", (program, "--config", str(CONTAINERD_CONFIG)))


def etcd() -> Component:
    """Run etcd on the private loopback, without waiting for the disk: no one needs the data after a crash."""
    return _flags(
        "etcd", data_dir=INSIDE / "etcd", unsafe_no_fsync=True, log_level="warn", listen_client_urls=ETCD_URL,
        advertise_client_urls=ETCD_URL, listen_peer_urls="http://127.0.0.1:2380",
    )  # fmt: skip


def api_server() -> Component:
    """Run the API server with client certificates, ServiceAccount tokens, Node and RBAC authorization, default admission."""
    return _flags(
        "kube-apiserver",
        etcd_servers=ETCD_URL,
        bind_address="0.0.0.0",  # noqa: S104  the network namespace is private, pods come through the Service address
        secure_port=API_PORT,
        advertise_address=NODE_ADDRESS,
        service_cluster_ip_range=SERVICE_NETWORK,
        allow_privileged=True,
        anonymous_auth=False,
        authorization_mode="Node,RBAC",
        enable_admission_plugins="NodeRestriction",
        client_ca_file=PKI / "ca.crt",
        tls_cert_file=PKI / "apiserver.crt",
        tls_private_key_file=PKI / "apiserver.key",
        service_account_issuer="https://kubernetes.default.svc",
        service_account_key_file=PKI / "service-accounts.key",
        service_account_signing_key_file=PKI / "service-accounts.key",
        audit_policy_file=AUDIT_POLICY,
        audit_log_path=AUDIT_LOG,
        audit_log_maxsize=64,
        audit_log_maxbackup=1,
        kubelet_preferred_address_types="InternalIP",
        kubelet_certificate_authority=PKI / "ca.crt",
        kubelet_client_certificate=PKI / "apiserver-kubelet-client.crt",
        kubelet_client_key=PKI / "apiserver-kubelet-client.key",
        # Without a front proxy the server logs at every start that extension authentication is not set up; nothing uses it.
        profiling=False,
    )


def audit_policy() -> str:
    """Log the operator's requests without their bodies, and no others: these lines cost little, and tests read them."""
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [
            {"level": "Metadata", "userGroups": [f"system:serviceaccounts:{OPERATOR_NAMESPACE}"]},
            {"level": "None"},
        ],
    }
    return json.dumps(policy, indent=2)


def controller_manager() -> Component:
    """Run the controller-manager; each controller acts as a separate ServiceAccount."""
    config = PKI / f"{CONTROLLER_MANAGER.file}.kubeconfig"
    return _flags(
        "kube-controller-manager",
        kubeconfig=config,
        authentication_kubeconfig=config,
        authorization_kubeconfig=config,
        bind_address="127.0.0.1",
        leader_elect=False,
        use_service_account_credentials=True,
        service_account_private_key_file=PKI / "service-accounts.key",
        root_ca_file=PKI / "ca.crt",
        cluster_signing_cert_file=PKI / "ca.crt",
        cluster_signing_key_file=PKI / "ca.key",
        flex_volume_plugin_dir=INSIDE / "volume-plugins",
        profiling=False,
    )


def scheduler() -> Component:
    """Run the scheduler."""
    config = PKI / f"{SCHEDULER.file}.kubeconfig"
    return _flags(
        "kube-scheduler", kubeconfig=config, authentication_kubeconfig=config, authorization_kubeconfig=config,
        bind_address="127.0.0.1", leader_elect=False, profiling=False,
    )  # fmt: skip


def kubelet() -> Component:
    """Run the kubelet of the only node."""
    return _flags(
        "kubelet", config=KUBELET_CONFIG, kubeconfig=PKI / f"{KUBELET.file}.kubeconfig", node_ip=NODE_ADDRESS,
        hostname_override=NODE_NAME, root_dir="/var/lib/kubelet", cert_dir=PKI,
    )  # fmt: skip


def proxy() -> Component:
    """kube-proxy."""
    return _flags("kube-proxy", config=PROXY_CONFIG)


def containerd_config() -> str:
    """Return containerd's TOML.

    `restrict_oom_score_adj`: every sandbox asks for -998, and a process without CAP_SYS_RESOURCE may not lower the score.
    `base_runtime_spec` gives every container the mounts of `runtime_spec`.
    """
    return f"""\
version = 2
root = "{INSIDE}/containerd"
state = "{INSIDE}/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{INSIDE}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{REGISTRIES}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{CNI_FOLDER}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{RUNTIME_SPEC}"
"""


def cni_config() -> str:
    """Configure a bridge for the pods, without masquerading: no traffic can leave the namespace."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(INSIDE / "cni-addresses"),
            "ranges": [[{"subnet": POD_NETWORK}]],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return json.dumps({"cniVersion": "0.4.0", "name": "devcluster", "plugins": [bridge, ports]}, indent=2)


def kubelet_config(cgroup: str) -> str:
    """Return the KubeletConfiguration; `cgroup` is the existing parent cgroup of all pods."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(PKI / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(PKI / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(PKI / "kubelet-server.key"),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "volumePluginDir": str(INSIDE / "volume-plugins"),
        "nodeStatusUpdateFrequency": "2s",
        # A full disk of the host must not evict pods or remove images, because no registry could restore them.
        "evictionHard": dict.fromkeys(
            ("imagefs.available", "nodefs.available", "nodefs.inodesFree", "imagefs.inodesFree"), "0%"
        )
        | {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageMinimumGCAge": "240h",
        "resolvConf": "",
        "clusterDNS": [],
    }
    return json.dumps(config, indent=2)


def proxy_config() -> str:
    """Return the KubeProxyConfiguration; zero keeps the machine's connection tracking settings."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(PKI / f"{PROXY.file}.kubeconfig")},
        "clusterCIDR": POD_NETWORK,
        "hostnameOverride": NODE_NAME,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }
    return json.dumps(config, indent=2)
