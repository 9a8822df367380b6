"""Decides if the operator may connect to the address in a pod's status.

Some users may write the status of pods, and a forged one could name any address. So an address must be one that the
pod's node can give to a pod. docs/telemetry.md describes the rules.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from finetune_operator.observed.inventory import Inventory
from finetune_operator.observed.observation import Pod
from finetune_operator.sizing.gpus.nodes import NodeRecord

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEVER_OF_PODS = tuple(
    ipaddress.ip_network(block)
    for block in (
        "0.0.0.0/8",  # Linux connects 0.0.0.0 to the own host
        "100.100.100.200/32",  # metadata of Alibaba Cloud
        "168.63.129.16/32",  # WireServer of Azure
        "192.0.0.0/24",  # IETF protocol assignments; metadata of Oracle Cloud
        "64:ff9b::/96",  # IPv4 addresses behind NAT64
        "64:ff9b:1::/48",
        "2001::/32",  # IPv4 addresses in Teredo
        "2002::/16",  # IPv4 addresses in 6to4
        "fd00:c1::a9fe:a9fe/128",  # metadata of Oracle Cloud
        "fd00:ec2::/32",  # metadata, DNS and time of AWS
        "fd20:ce::254/128",  # metadata of Google Cloud
    )
)


@dataclass(frozen=True)
class OperatorPod:
    """Address and node of the operator's own pod, from the downward API; empty outside of a pod."""

    ip: str = ""
    node: str = ""


def address_obstacle(pod: Pod, inventory: Inventory, own: OperatorPod) -> str | None:
    """Why the operator must not connect to the address of `pod`; None if it may.

    `own` shows if the network plugin uses the pod networks of the nodes. Some plugins ignore them.
    """
    address = _parse(pod.ip)
    if address is None:
        return f"{pod.ip[:64]!r} is not an IP address"
    if _is_special(address):
        return f"{pod.ip} is a loopback, link-local, metadata or other special address"
    if inventory.problem is not None:
        # Without nodes there is nothing to compare with.
        return f"{pod.ip} is a public address, and the nodes are unknown" if address.is_global else None
    return _node_obstacle(address, pod, inventory, own)


def _node_obstacle(address: Address, pod: Pod, inventory: Inventory, own: OperatorPod) -> str | None:
    """Why the node of `pod` cannot give it this address."""
    node = inventory.nodes.get(pod.node)
    if node is None:
        return f"the node {pod.node!r} of the pod is unknown"
    if pod.host_network:
        return None if str(address) in node.addresses else f"{address} is not an address of node {node.name}"
    if str(address) in inventory.node_addresses and str(address) not in node.addresses:
        # A node for a single pod (AWS Fargate) has the address of that pod.
        return f"{address} is an address of another node than {node.name}"
    return _network_obstacle(address, node, in_use=not _ignores_networks(own, inventory))


def _network_obstacle(address: Address, node: NodeRecord, *, in_use: bool) -> str | None:
    """Why `node` cannot give this address to a pod. `in_use` says if the node's pod networks tell."""
    if node.pod_networks and in_use:
        if _lies_in(address, node):
            return None
        return (
            f"{address} lies outside of the pod networks {', '.join(node.pod_networks)} of node {node.name}"
        )
    if not address.is_global:
        return None
    others = map(_parse, node.addresses)
    if any(each is not None and each.version == address.version and each.is_global for each in others):
        return None
    return f"{address} is a public address, and node {node.name} has none of this kind"


def _ignores_networks(own: OperatorPod, inventory: Inventory) -> bool:
    """True if the operator's own pod shows that addresses of pods do not come from the nodes' pod networks."""
    node = inventory.nodes.get(own.node)
    address = _parse(own.ip)
    if node is None or address is None or not node.pod_networks or str(address) in node.addresses:
        return False
    return not _lies_in(address, node)


def _lies_in(address: Address, node: NodeRecord) -> bool:
    networks = map(_parse_network, node.pod_networks)
    return any(
        network is not None and network.version == address.version and address in network
        for network in networks
    )


def _is_special(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address.ipv4_mapped):
        return True
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address.is_reserved
        or any(address.version == block.version and address in block for block in _NEVER_OF_PODS)
    )


@lru_cache(maxsize=8192)
def _parse(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@lru_cache(maxsize=8192)
def _parse_network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
