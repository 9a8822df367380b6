"""Runs a command in a network of its own, in which every packet to the outside is noted and lost.

Linux gives it a network namespace with loopback and one device to everywhere. This process is the other end of that
device, and answers nothing: no name resolves and no connection is refused, so what waits for the outside shows by its time.
It needs root.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.repository import ROOT

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_DEVICE = "outside"
_ROUTER = "198.18.0.1"
_SETUP = (
    "ip link set lo up",
    # The kernel itself looks for routers of IPv6 otherwise.
    f"sysctl -q -w net.ipv6.conf.{_DEVICE}.addr_gen_mode=1 net.ipv6.conf.{_DEVICE}.router_solicitations=0",
    f"ip addr add 198.18.0.2/24 dev {_DEVICE}",
    f"ip -6 addr add fd00:6::2/64 dev {_DEVICE} nodad",
    f"ip link set {_DEVICE} up",
    f"ip route add default via {_ROUTER} dev {_DEVICE}",
    f"ip -6 route add default via fd00:6::1 dev {_DEVICE}",
)


@dataclass(frozen=True)
class Outcome:
    """The end of a command: its exit code, its seconds, its output, and where its packets wanted to go."""

    code: int
    seconds: float
    output: str
    destinations: tuple[str, ...]


def run_air_gapped(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
) -> Outcome:
    """Run `command` without any outside, for at most `seconds`."""
    report = folder / "air-gap.json"
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver {_ROUTER}\n")
    wrapped = [
        "unshare",
        "--net",
        "--mount",
        sys.executable,
        "-m",
        __name__,
        str(report),
        str(resolver),
        *command,
    ]
    done = subprocess.run(
        wrapped,
        check=False,
        capture_output=True,
        text=True,
        env=dict(environment),
        cwd=ROOT,
        timeout=seconds,
    )
    if not report.exists():
        raise AssertionError(f"the network could not be made: {done.stderr}")
    found = json.loads(report.read_text())
    output = done.stdout + done.stderr
    return Outcome(done.returncode, found["seconds"], output, tuple(found["destinations"]))


def _inside(report: Path, resolver: str, command: Sequence[str]) -> int:
    """Make the network, run the command, and note the packets."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    for line in _SETUP:
        subprocess.run(line.split(), check=True)
    subprocess.run(["mount", "--bind", resolver, "/etc/resolv.conf"], check=True)
    destinations: set[str] = set()

    def listen() -> None:
        while packet := os.read(device, 65536):
            destinations.add(_destination(packet))

    threading.Thread(target=listen, daemon=True).start()
    began = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    found = {"seconds": time.monotonic() - began, "destinations": sorted(destinations)}
    report.write_text(json.dumps(found))
    return code


def _destination(packet: bytes) -> str:
    """Return address and port that a packet is for."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    if packet[0] >> 4 == 6:
        address, protocol, start = ipaddress.IPv6Address(packet[24:40]), packet[6], 40
    else:
        address, protocol = ipaddress.IPv4Address(packet[16:20]), packet[9]
        start = 4 * (packet[0] & 15)
    has_port = protocol in {6, 17}
    return f"{address} port {int.from_bytes(packet[start + 2 : start + 4])}" if has_port else str(address)


if __name__ == "__main__":
    sys.exit(_inside(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
