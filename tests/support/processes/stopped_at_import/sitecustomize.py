"""Sends SIGTERM to its own process at a chosen moment of the imports: put this folder into PYTHONPATH.

Python imports this module by its name when it starts. FINETUNE_TEST_STOP_AT is the module at whose import the signal
comes. With FINETUNE_TEST_STOP_IN, MODULE.NAME, it comes in the next call of a function of that module with that name.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

_AT = os.environ.get("FINETUNE_TEST_STOP_AT")
_IN = os.environ.get("FINETUNE_TEST_STOP_IN")


class _Stopper:
    """Finds no module, and sees the names of all."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> None:
        if name != _AT:
            return
        if _IN is None:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            sys.setprofile(_profile)


def _profile(frame: FrameType, event: str, _argument: Any) -> None:
    if event == "call" and f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}" == _IN:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGTERM)


if _AT is not None:
    sys.meta_path.insert(0, _Stopper())
