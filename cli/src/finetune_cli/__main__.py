"""The command line: `finetune`, or `kubectl finetune` as a plugin of kubectl."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from finetune_operator.errors import InvalidSpecError

from finetune_cli.app import finetune
from finetune_cli.cluster.kubectl import (
    ClusterError,
    ExistsError,
    ForbiddenError,
    NotFoundError,
    RejectedError,
)
from finetune_cli.errors import ClosedOutputError, UsageError
from finetune_cli.exit_codes import ExitCode

_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (TimeoutError, ExitCode.TIMEOUT),
    (RejectedError, ExitCode.REJECTED),
    (NotFoundError, ExitCode.NO_INPUT),
    (ExistsError, ExitCode.EXISTS),
    (ForbiddenError, ExitCode.NO_PERMISSION),
    (ClusterError, ExitCode.UNAVAILABLE),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = None if arguments is None else list(arguments)
    try:
        code = finetune.main(given, prog_name=program_name(sys.argv[0]), standalone_mode=False)
        sys.stdout.flush()
    except (
        click.exceptions.Exit,
        click.Abort,
        KeyboardInterrupt,
        BrokenPipeError,
        ClosedOutputError,
    ) as stop:
        return _stopped(stop)
    except click.ClickException as error:
        return _misused(error)
    except (UsageError, InvalidSpecError) as error:
        return _refuse(str(error), ExitCode.USAGE)
    except (ClusterError, TimeoutError) as error:
        return _refuse(str(error), next(code for kind, code in _CODES if isinstance(error, kind)))
    return ExitCode.SUCCESS if code is None else int(code)


def _misused(error: click.ClickException) -> ExitCode:
    """Print the usage of the command and what is wrong, or the help if no command was given."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return ExitCode.USAGE
    context = getattr(error, "ctx", None)
    if context is not None:
        print(context.get_usage(), file=sys.stderr)
    return _refuse(error.format_message(), ExitCode.USAGE)


def _stopped(stop: BaseException) -> int:
    """Return the exit code of a command that ended early, without a message."""
    if isinstance(stop, click.exceptions.Exit):
        return stop.exit_code
    if isinstance(stop, BrokenPipeError | ClosedOutputError):
        # The reader closed the pipe on purpose. Without this, Python prints another error when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    return ExitCode.INTERRUPTED


def program_name(path: str) -> str:
    """Return the name that users type for the program at `path`."""
    return "kubectl finetune" if Path(path).name.startswith("kubectl-") else "finetune"


def _refuse(message: str, code: ExitCode) -> ExitCode:
    print(f"finetune: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
