"""Possible traces of a dev cluster: mounts, firewall rules, links, cgroups, kernel settings, processes."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from devcluster.cgroups import hierarchies

_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/ip_forward",
)
# Default paths of Kubernetes components, which a cluster must not create outside its namespaces.
_PATHS = ("/run/netns", "/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers", "/opt/containerd",
          "/run/containerd", "/etc/cni", "/etc/kubernetes", "/run/devcluster")  # fmt: skip


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Machine:
    """The machine's comparable state, without anything that other programs change constantly."""

    mounts: frozenset[str]
    firewall: str
    links: frozenset[str]
    cgroups: frozenset[str]
    settings: tuple[str, ...]
    paths: tuple[str, ...]

    @classmethod
    def look(cls, cluster: str) -> Machine:
        """Read the machine's present state, with only the cgroups that the cluster `cluster` could create."""
        saved = [_output(f"{program}-save") for program in ("iptables", "ip6tables")]
        # Comment lines of both programs contain the time.
        rules = [line for text in saved for line in text.splitlines() if not line.startswith("#")]
        groups = [path for top in hierarchies() for path in top.glob(f"*{cluster}*")]
        groups += [
            path for top in hierarchies() for name in ("kubepods", "k8s.io") for path in top.glob(name)
        ]
        return cls(
            mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
            firewall="\n".join([*rules, _output("nft", "list", "ruleset")]),
            links=frozenset(_output("ip", "-brief", "address").splitlines()),
            cgroups=frozenset(map(str, groups)),
            settings=tuple(Path("/proc/sys", name).read_text().strip() for name in _SETTINGS),
            paths=tuple(path for path in _PATHS if Path(path).exists()),
        )


@dataclass(frozen=True)
class Process:
    """A process; its start time (clock ticks since boot) distinguishes it from later ones with the same id."""

    pid: int
    started: str


def _stat(pid: int) -> tuple[int, str] | None:
    """Return parent and start time of a process, or None if it has ended or is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the name, can contain blanks and brackets; the other fields follow the last bracket.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else (int(fields[1]), fields[19])


def descendants(root: int) -> set[Process]:
    """Return the process `root` and all its descendants, in any namespace."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    known = {pid: stat for pid in pids if (stat := _stat(pid))}
    family, grown = {root}, True
    while grown:
        more = {pid for pid, (parent, _) in known.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return {Process(pid, known[pid][1]) for pid in family if pid in known}


def survivors(family: set[Process]) -> list[Process]:
    """Return the processes of `family` that still run."""
    return [process for process in family if (stat := _stat(process.pid)) and stat[1] == process.started]
