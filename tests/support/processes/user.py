"""Runs a function as the user of the trainer's pods, whom file permissions bind, unlike root."""

from __future__ import annotations

import os
from collections.abc import Callable

from finetune_trainer.errors import StageError

USER = 65532


def message_as_user(function: Callable[[], object]) -> str:
    """Return the message of the StageError that `function` raises as this user; empty if it raises none.

    It runs in a child process. If this process is not root's, the user stays the same.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        message = "the child failed"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(USER, USER, USER)
                os.setresuid(USER, USER, USER)
            function()
            message = ""
        except StageError as error:
            message = error.message
        except BaseException as error:  # noqa: BLE001 -- the parent shows it
            message = repr(error)
        finally:
            os.write(writer, message.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as answer:
        message = answer.read()
    os.waitpid(process, 0)
    return message
