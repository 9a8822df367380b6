"""`finetune watch`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from finetune_cli.cluster.client import Client, condition
from finetune_cli.cluster.kubectl import ApiUnavailableError
from finetune_cli.exit_codes import ExitCode
from finetune_cli.jobs.summary import summary
from finetune_cli.options import Command, cluster_options, complete_job, output_option
from finetune_cli.text import console_for
from finetune_cli.watch.frame import frame
from finetune_cli.watch.history import LossHistory
from finetune_cli.watch.lines import change_line

if TYPE_CHECKING:
    from rich.console import Console, Group

_REFRESHES_PER_SECOND = 4
_OUTAGE = "the API server does not respond; trying again"


@click.command(
    "watch",
    cls=Command,
    examples=(
        ("finetune watch support-bot", "Follow a job; the exit code is 0 if it succeeds and 1 if it fails."),
        ("finetune watch support-bot search-bot --timeout 7200", "Follow two jobs, for at most two hours."),
        ("finetune watch support-bot -o json", "Print one JSON document for each change."),
    ),
)
@click.argument("names", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_job)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Stop after this time, with exit code 75.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks at the jobs.",
)
@output_option("json")
@cluster_options
def watch(
    client: Client, names: Sequence[str], timeout: float | None, interval: float, output: str | None
) -> ExitCode:
    """Follow jobs until all have ended.

    A terminal gets a live view, and the loss since the command began as a sparkline. A pipe gets one line for each change.
    The command outlives restarts of the API server.
    """
    last: dict[str, Mapping[str, Any]] = {}
    with _view(output) as (show, outage):
        for job in client.follow(*names, timeout=timeout, every=interval, on_outage=outage):
            last[job["metadata"]["name"]] = job
            show(job)
    succeeded = all(condition(job, "Succeeded").get("status") == "True" for job in last.values())
    return ExitCode.SUCCESS if succeeded else ExitCode.FAILED


Show = Callable[[Mapping[str, Any]], None]
Outage = Callable[[ApiUnavailableError], None]


@contextmanager
def _view(output: str | None) -> Iterator[tuple[Show, Outage]]:
    """Yield the functions that show a changed job and an outage of the API server."""
    console = console_for(sys.stdout)
    if output == "json":
        yield _print_json, _warn_once()
    elif console.is_terminal:
        from rich.live import Live  # noqa: PLC0415 -- only a terminal needs it

        screen = Screen(console)
        with Live(
            get_renderable=screen.render,
            console=console,
            refresh_per_second=_REFRESHES_PER_SECOND,
        ):
            yield screen.show, screen.lose
    else:
        yield LineWriter().show, _warn_once()


def _print_json(job: Mapping[str, Any]) -> None:
    print(json.dumps(summary(job)), flush=True)


def _warn_once() -> Outage:
    warned = False

    def warn(error: ApiUnavailableError) -> None:
        nonlocal warned
        if not warned:
            click.echo(f"finetune: {_OUTAGE}: {error}", err=True)
        warned = True

    return warn


class LineWriter:
    """Prints a line with the time for each change of a job that the line shows."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def show(self, job: Mapping[str, Any]) -> None:
        """Print the job, unless its line is the last one."""
        name, line = job["metadata"]["name"], change_line(job)
        if self._last.get(name) != line:
            self._last[name] = line
            print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True)


class Screen:
    """The live view: the last state of every job."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._jobs: dict[str, Mapping[str, Any]] = {}
        self._losses: dict[str, LossHistory] = {}
        self._lost = False

    def show(self, job: Mapping[str, Any]) -> None:
        """Take the new state of a job."""
        name = job["metadata"]["name"]
        self._losses.setdefault(name, LossHistory()).add(job)
        # Another thread draws, so the dictionary is replaced and not changed.
        self._jobs = {**self._jobs, name: job}
        self._lost = False

    def lose(self, _error: ApiUnavailableError) -> None:
        """Say that the API server does not respond."""
        self._lost = True

    def render(self) -> Group:
        """Return the whole view."""
        from rich.console import Group  # noqa: PLC0415 -- only a terminal needs it
        from rich.text import Text  # noqa: PLC0415 -- as above

        now, blocks = datetime.now(UTC), "utf" in (self._console.encoding or "").lower()
        lines = [
            Text(line, style=style, no_wrap=True)
            for name, job in self._jobs.items()
            for line, style in frame(job, self._losses[name], now, self._console.width, blocks=blocks)
        ]
        return Group(*lines, *([Text(_OUTAGE, style="yellow")] if self._lost else []))
