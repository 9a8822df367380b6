from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.observed.inventory import Inventory
from finetune_operator.observed.pod_address import OperatorPod, address_obstacle
from finetune_operator.sizing.gpus.nodes import NodeRecord
from hypothesis import given
from hypothesis import strategies as st

from tests.support.operator import make_inventory, make_node
from tests.support.world import started

POD = started().run_pod("demo-prepare-0")
OUTSIDE = OperatorPod()


def obstacle(
    ip: str, inventory: Inventory, *, own: OperatorPod = OUTSIDE, host_network: bool = False
) -> str | None:
    return address_obstacle(replace(POD, ip=ip, node="node1", host_network=host_network), inventory, own)


def cluster(
    networks: tuple[str, ...] = (), addresses: tuple[str, ...] = ("192.168.1.1",), *others: NodeRecord
) -> Inventory:
    """A cluster with the pod's node and others."""
    return make_inventory(make_node("node1", pod_networks=networks, addresses=addresses), *others)


# fmt: off
SPECIAL = [
    "0.0.0.0",  # noqa: S104 -- an address to refuse
    "127.0.0.1", "127.8.8.8", "::1", "0.1.2.3", "::", "169.254.169.254", "169.254.170.2", "fe80::1",
    "fe80::1%eth0", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254",
    "fd00:c1::a9fe:a9fe", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:7f00::1",
]
# fmt: on


@pytest.mark.parametrize("ip", SPECIAL)
@pytest.mark.parametrize(
    "inventory",
    [
        cluster(),
        cluster(("0.0.0.0/0", "::/0")),
        cluster(addresses=("169.254.169.254", "127.0.0.1")),
        make_inventory(problem="forbidden"),
    ],
    ids=["no networks", "every network", "odd node", "unknown nodes"],
)
@pytest.mark.parametrize("host_network", [False, True])
def test_special_addresses_are_refused_whatever_a_node_says(
    ip: str, inventory: Inventory, *, host_network: bool
) -> None:
    assert "special address" in str(obstacle(ip, inventory, host_network=host_network))


@pytest.mark.parametrize(
    "ip", ["", "metadata.google.internal", "10.0.0.1@evil", "10.0.0.1/", "010.0.0.1", "1"]
)
def test_only_an_ip_address_is_accepted(ip: str) -> None:
    assert "not an IP address" in str(obstacle(ip, cluster()))


@pytest.mark.parametrize(
    ("ip", "accepted"),
    [
        ("10.1.2.3", True),
        ("10.1.3.3", False),
        ("8.8.8.8", False),
        ("fd01::2", True),
        ("fd02::2", False),
        ("192.168.1.1", False),
    ],
)
def test_an_address_must_be_of_its_nodes_pod_networks(ip: str, *, accepted: bool) -> None:
    found = obstacle(ip, cluster(("10.1.2.0/24", "fd01::/64")))
    assert (found is None) is accepted, found


def test_the_network_of_another_node_is_not_that_of_the_pod() -> None:
    inventory = cluster(("10.1.2.0/24",), ("192.168.1.1",), make_node("node2", pod_networks=("10.1.3.0/24",)))
    assert "lies outside" in str(obstacle("10.1.3.3", inventory))


def test_a_pod_on_the_network_of_its_node_has_an_address_of_that_node() -> None:
    inventory = cluster((), ("192.168.1.1", "fd09::1"), make_node("node2", addresses=("192.168.1.2",)))
    assert obstacle("192.168.1.1", inventory, host_network=True) is None
    assert obstacle("fd09::1", inventory, host_network=True) is None
    assert "not an address of node node1" in str(obstacle("192.168.1.2", inventory, host_network=True))
    assert "not an address of node node1" in str(obstacle("10.0.0.1", inventory, host_network=True))
    assert "of another node" in str(obstacle("192.168.1.2", inventory))


def test_a_node_for_a_single_pod_may_have_the_address_of_that_pod() -> None:
    """A node of AWS Fargate has it, and it has no pod networks."""
    assert obstacle("192.168.1.1", cluster()) is None
    assert "lies outside" in str(obstacle("192.168.1.1", cluster(("10.1.2.0/24",))))


@pytest.mark.parametrize(
    ("ip", "node_addresses", "accepted"),
    [
        ("10.9.9.9", ("192.168.1.1",), True),
        ("100.64.3.3", ("192.168.1.1",), True),
        ("fd77::1", ("192.168.1.1",), True),
        ("8.8.8.8", ("192.168.1.1",), False),
        ("8.8.8.8", ("192.168.1.1", "9.9.9.9"), True),
        ("2600:1f13::5", ("192.168.1.1", "9.9.9.9"), False),
        ("2600:1f13::5", ("192.168.1.1", "2600:1f13::1"), True),
    ],
)
def test_without_pod_networks_an_address_is_as_public_as_those_of_the_node(
    ip: str,
    node_addresses: tuple[str, ...],
    *,
    accepted: bool,
) -> None:
    found = obstacle(ip, cluster((), node_addresses))
    assert (found is None) is accepted, found


def test_pod_networks_that_the_network_plugin_ignores_do_not_count() -> None:
    inventory = cluster(
        ("10.1.2.0/24",),
        ("192.168.1.1",),
        make_node("node2", pod_networks=("10.1.3.0/24",), addresses=("192.168.1.2",)),
    )
    assert obstacle("172.20.0.9", inventory, own=OperatorPod("172.20.0.7", "node2")) is None
    assert "public" in str(obstacle("8.8.8.8", inventory, own=OperatorPod("172.20.0.7", "node2")))
    for own in (
        OperatorPod("10.1.3.7", "node2"),
        OperatorPod("192.168.1.2", "node2"),
        OperatorPod("172.20.0.7", "node3"),
        OperatorPod("", "node2"),
    ):
        assert "lies outside" in str(obstacle("172.20.0.9", inventory, own=own)), own


def test_a_pod_on_an_unknown_node_is_refused() -> None:
    assert "is unknown" in str(obstacle("10.0.0.1", make_inventory(make_node("node2"))))


def test_private_addresses_are_accepted_if_the_operator_may_not_read_nodes() -> None:
    inventory = make_inventory(problem="forbidden")
    assert obstacle("10.0.0.1", inventory) is None
    assert "nodes are unknown" in str(obstacle("8.8.8.8", inventory))


@given(st.text(max_size=50), st.lists(st.text(max_size=20), max_size=3))
def test_no_text_breaks_the_check(ip: str, networks: list[str]) -> None:
    inventory = cluster(tuple(networks), tuple(networks))
    for host_network in (False, True):
        found = obstacle(ip, inventory, own=OperatorPod("10.0.0.1", "node1"), host_network=host_network)
        assert found is None or isinstance(found, str)


@given(st.ip_addresses())
def test_an_accepted_address_lies_in_the_nodes_network(ip: object) -> None:
    found = obstacle(str(ip), cluster(("10.1.2.0/24",)))
    assert (found is None) == str(ip).startswith("10.1.2.")
