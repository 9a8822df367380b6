"""The memory that this container may still use."""

from __future__ import annotations

from pathlib import Path

# Limit and use of a group, in cgroup v2 and in v1.
_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_memory(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the bytes that this container may still use: the node's available memory within the cgroup's limit.

    Version 1 of cgroups writes "no limit" as a number near 2^63, which the node's memory bounds.
    """
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit_name, used_name in _FILES:
        try:
            limit = (cgroup / limit_name).read_text(encoding="ascii").strip()
            used = int((cgroup / used_name).read_text(encoding="ascii"))
        except OSError:
            continue  # the other version, or none (a laptop): only the node's memory is known
        if limit != "max":
            free = min(free, max(0, int(limit) - used))
    return free
