"""Taints that go by themselves, and those that only the administrator or the user can overcome."""

from __future__ import annotations

import pytest
from finetune_operator.sizing.gpus.node_taints import is_cordoned, is_starting


@pytest.mark.parametrize(
    "key",
    [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        "node.kubernetes.io/network-unavailable",
        "node.kubernetes.io/disk-pressure",
        "node.cloudprovider.kubernetes.io/uninitialized",
        "node.cloudprovider.kubernetes.io/shutdown",
        "node.cluster.x-k8s.io/uninitialized",
        "karpenter.sh/unregistered",
        "node.lepton.ai/unregistered",
        "node.cilium.io/agent-not-ready",
        "ebs.csi.aws.com/agent-not-ready",
        "efs.csi.aws.com/agent-not-ready",
        "fsx.csi.aws.com/agent-not-ready",
        "s3.csi.aws.com/agent-not-ready",
        "cni.istio.io/not-ready",
        "startup-taint.cluster-autoscaler.kubernetes.io/gpu-driver",
        "ignore-taint.cluster-autoscaler.kubernetes.io/cilium",
        "status-taint.cluster-autoscaler.kubernetes.io/impaired",
        "readiness.k8s.io/network",
        "nodewright.nvidia.com",
        "skyhook.nvidia.com",
        "nvidia.com/gpu-not-ready",
        "nvidia.com/driver-installing",
        "example.com/node.startup",
        "nidhogg.uswitch.com/kube-system.agent",
    ],
)
def test_a_start_up_taint_goes_by_itself(key: str) -> None:
    assert is_starting(key)
    assert not is_cordoned(key)


@pytest.mark.parametrize(
    "key",
    [
        "node.kubernetes.io/unschedulable",
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
    ],
)
def test_a_cordoned_node_is_not_starting(key: str) -> None:
    assert is_cordoned(key)
    assert not is_starting(key)


@pytest.mark.parametrize(
    "key", ["team", "dedicated", "nvidia.com/gpu", "sku", "example.com/ready", "restarting-team.com/pool", ""]
)
def test_a_taint_with_a_purpose_stays(key: str) -> None:
    assert not is_starting(key)
    assert not is_cordoned(key)
