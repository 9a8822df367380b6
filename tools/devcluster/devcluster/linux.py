"""The few Linux calls that Python 3.11 does not offer: unshare, mount, prctl.

Every function raises OSError with the kernel's reason.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SHARED = 0x100000

_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces; CLONE_NEWPID applies only to its later children."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: Path | str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Call mount(2); `kind` is the file system's type, `options` its specific options."""
    arguments = (
        source.encode(),
        str(target).encode(),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(_libc.mount(*arguments), f"mount {source} on {target}")


def bind(source: Path | str, target: Path | str) -> None:
    """Bind `source` to `target`, which must exist and have the same kind."""
    mount(str(source), target, flags=MS_BIND | MS_REC)


def die_with_parent(death_signal: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send `death_signal` to this process when its parent dies, even by SIGKILL.

    `parent` is the expected parent's process id. If the parent died before this call, there is no signal: the process ids
    differ then, and this process ends at once. (For the kernel the parent is the thread that forked: fork from a thread
    that lives as long as the process.)
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(death_signal), 0, 0, 0), "prctl PR_SET_PDEATHSIG")
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), death_signal)
