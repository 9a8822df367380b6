from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from finetune_cli.cluster.client import Client
from finetune_cli.cluster.kubectl import Kubectl
from finetune_cli.options import (
    Command,
    Pair,
    cluster_options,
    complete_job,
    output_option,
    volume_options,
    wrapped,
)

from tests.support.cli_jobs import cli_job
from tests.support.kubectl_program import KubectlProgram


def test_a_pair_is_split_at_the_first_equals_sign() -> None:
    assert Pair("CLAIM=FOLDER", Path).convert("models=/data/a=b", None, None) == ("models", Path("/data/a=b"))


@pytest.mark.parametrize("text", ["models", "models=", "=/data", "", "="])
def test_a_pair_without_name_or_value_is_rejected(text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be CLAIM=FOLDER, found"):
        Pair("CLAIM=FOLDER").convert(text, None, None)


def test_the_cluster_options_become_a_client() -> None:
    found: list[Client] = []

    @click.command()
    @cluster_options
    def command(client: Client) -> None:
        found.append(client)

    command.main(["-n", "team", "--context", "staging", "--kubeconfig", "/k"], standalone_mode=False)
    assert found[0].kubectl == Kubectl("team", "staging", "/k")


def test_volumes_have_a_default_and_overrides() -> None:
    @click.command()
    @volume_options
    def command(**options: Any) -> dict[str, Any]:
        return options

    assert command.main([], standalone_mode=False) == {"volumes": Path(".finetune/volumes"), "volume": ()}
    given = command.main(["--volume", "a=x"], standalone_mode=False)
    assert given["volume"] == (("a", Path("x")),)


def test_examples_are_wrapped_so_that_a_shell_reads_them() -> None:
    line = "finetune create support-bot " + " ".join(f"--set training.seed={number}" for number in range(6))
    lines = wrapped(line)
    assert len(lines) > 1
    assert all(len(part) <= 74 for part in lines)
    assert " ".join("\n".join(lines).replace("\\\n", " ").split()) == line
    assert all(part.strip().startswith("--set") for part in lines[1:])


def test_help_ends_with_the_examples() -> None:
    @click.command(cls=Command, examples=(("finetune do", "Do it."),))
    @output_option("json")
    def command(output: str | None) -> None:
        """Do."""

    printed = CliRunner().invoke(command, ["--help"]).output
    assert printed.endswith("Examples:\n  # Do it.\n  finetune do\n")


def test_names_of_jobs_are_completed(cluster: KubectlProgram) -> None:
    cluster.put(cli_job("airports"))
    cluster.put(cli_job("support-bot"))
    context = click.Context(click.Command("watch"))
    assert complete_job(context, click.Argument(["names"]), "sup") == ["support-bot"]


def test_completion_offers_nothing_if_the_cluster_does_not_respond(cluster: KubectlProgram) -> None:
    cluster.fail("Unable to connect to the server: EOF")
    assert complete_job(click.Context(click.Command("watch")), click.Argument(["names"]), "") == []
