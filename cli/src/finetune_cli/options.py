"""Parts that several commands share: a command with examples, the cluster's options and types of values."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from finetune_cli.cluster.client import Client
from finetune_cli.cluster.kubectl import ClusterError, Kubectl

Function = TypeVar("Function", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
_COMPLETION_SECONDS = 3.0
_EXAMPLE_WIDTH = 72


class Command(click.Command):
    """A command whose help ends with examples: pairs of a command line and its meaning."""

    def __init__(self, *arguments: Any, examples: Sequence[tuple[str, str]] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for line, meaning in self.examples:
                    formatter.write_text(f"# {meaning}")
                    formatter.write(
                        "".join(f"{'':{formatter.current_indent}}{part}\n" for part in wrapped(line))
                    )


def wrapped(line: str) -> list[str]:
    """Return a command line as lines of a shell, with a backslash at the end of all but the last."""
    parts = [""]
    for part in re.split(r" (?=-|> )", line):
        joined = f"{parts[-1]} {part}".strip() if len(parts) == 1 else f"{parts[-1]} {part}"
        if parts[-1] and len(joined) > _EXAMPLE_WIDTH:
            parts.append(f"    {part}")
        else:
            parts[-1] = joined
    return [*(f"{part} \\" for part in parts[:-1]), parts[-1]]


class Pair(click.ParamType[Any]):
    """A value of the form NAME=VALUE, as a pair."""

    name = "pair"

    def __init__(self, form: str, value: Callable[[str], Any] = str) -> None:
        self.form, self._value = form, value

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Split the text at the first equals sign."""
        if isinstance(value, tuple):
            return value
        name, separator, text = str(value).partition("=")
        if not separator or not name or not text:
            self.fail(f"must be {self.form}, found {str(value)!r}", param, ctx)
        return name, self._value(text)


def volume_options(function: Function) -> Function:
    """Options that map PersistentVolumeClaims to folders."""
    function = click.option(
        "--volume",
        type=Pair("CLAIM=FOLDER", Path),
        multiple=True,
        metavar="CLAIM=FOLDER",
        help="Folder of one claim.",
    )(function)
    return click.option(
        "--volumes",
        type=FILE,
        default=Path(".finetune/volumes"),
        show_default=True,
        metavar="FOLDER",
        help="A claim NAME is the folder VOLUMES/NAME.",
    )(function)


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that choose a cluster and a namespace. The function gets the `client` instead of them."""

    @functools.wraps(function)
    def with_client(
        *, namespace: str | None, context: str | None, kubeconfig: str | None, **options: Any
    ) -> Any:
        return function(client=Client(Kubectl(namespace, context, kubeconfig)), **options)

    for option in reversed(_CLUSTER_OPTIONS):
        with_client = option(with_client)
    return with_client


_CLUSTER_OPTIONS = (
    click.option("-n", "--namespace", metavar="NAME", help="Namespace; by default that of the context."),
    click.option("--context", metavar="NAME", help="Context of the kubeconfig."),
    click.option("--kubeconfig", metavar="FILE", help="Kubeconfig; by default KUBECONFIG or ~/.kube/config."),
)


def selection_options(function: Function) -> Function:
    """Options that choose jobs of a cluster."""
    function = click.option(
        "-l", "--selector", metavar="LABELS", help="Label selector, such as team=search."
    )(function)
    return click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of all namespaces.")(function)


def output_option(*formats: str, default: str | None = None) -> Callable[[Function], Function]:
    """The option -o with its formats."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats),
        default=default,
        show_default=True,
        help="Form of the output.",
    )


def complete_job(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of FineTuneJobs that begin with `incomplete`; none if the cluster does not respond soon."""
    given = {name: ctx.params.get(name) for name in ("namespace", "context", "kubeconfig")}
    try:
        names = Client(Kubectl(**given)).names(seconds=_COMPLETION_SECONDS)
    except ClusterError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def job_argument(function: Function) -> Function:
    """The name of one FineTuneJob."""
    return click.argument("name", metavar="JOB", shell_complete=complete_job)(function)


def echo(text: str) -> None:
    """Print to standard output, without a newline of its own."""
    sys.stdout.write(text)
