from __future__ import annotations

import pytest
from finetune_operator.observed.steady import steady

QUOTA = 'Job a-train-0 has no pod: FailedCreate: pods "a-train-0-{}" is forbidden: exceeded quota: q, used: cpu={}, limited: cpu=8'
SANDBOX = 'pod a: FailedCreatePodSandBox: failed to set up sandbox "{}" network: dial tcp {}: refused'


def test_a_message_about_a_failing_pull_stays_while_the_kubelet_changes_its_word() -> None:
    first = "pod a: ErrImagePull: no such image"
    assert steady(first, 'pod a: ImagePullBackOff: Back-off pulling image "x"') == first
    for other in (
        "pod b: ImagePullBackOff: no such image",
        "pod a: Init:ErrImagePull: no such image",
        "pod a: CreateContainerConfigError: no such secret",
    ):
        assert steady(first, other) == other
    assert steady("", first) == first


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ("0/5 nodes are available: 3 Insufficient cpu.", "0/12 nodes are available: 11 Insufficient cpu."),
        (QUOTA.format("x8k2l", "7500m"), QUOTA.format("zzp4d", "8")),
        (SANDBOX.format("0" * 64, "10.0.0.1:6443"), SANDBOX.format("ab" * 32, "10.0.0.2:6443")),
    ],
)
def test_a_message_stays_while_only_its_numbers_and_random_names_change(shown: str, found: str) -> None:
    assert steady(shown, found) == shown


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ('configmap "rows-1" not found', 'configmap "rows-2" not found'),
        ('configmap "rows1" not found', 'configmap "rows2" not found'),
        ("pod demo-train-0-abcde: x", "pod demo-train-1-abcde: x"),
        ("0/5 nodes are available: 3 Insufficient cpu.", "0/5 nodes are available: 3 Insufficient memory."),
    ],
)
def test_a_message_changes_with_its_cause(shown: str, found: str) -> None:
    assert steady(shown, found) == found
