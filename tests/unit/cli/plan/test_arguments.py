from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from finetune_cli.plan.arguments import plan_options


def parse(*arguments: str) -> dict[str, Any]:
    @click.command()
    @plan_options
    def command(**options: Any) -> dict[str, Any]:
        return options

    parsed: dict[str, Any] = command.main(list(arguments), standalone_mode=False)
    return parsed


def test_repeatable_options_are_collected_in_order() -> None:
    found = parse(
        *("--gpu", "L4", "--gpu", "A40", "--set", "training.seed=1", "--set", "training.epochs=2"),
        *("--volume", "a=x", "--volume", "b=y"),
    )
    assert found["gpu"] == ("L4", "A40")
    assert found["settings"] == ("training.seed=1", "training.epochs=2")
    assert dict(found["volume"]) == {"a": Path("x"), "b": Path("y")}


def test_without_options_nothing_is_set() -> None:
    found = parse()
    assert found.pop("volumes") == Path(".finetune/volumes")
    assert found.pop("device") == "cuda"
    assert not any(found.values())


def test_the_file_may_be_an_argument_or_an_option_like_in_kubectl() -> None:
    assert parse("job.yaml")["file"] == Path("job.yaml")
    assert parse("-f", "job.yaml")["filename"] == Path("job.yaml")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="'cuda', 'cpu'"):
        parse("--device", "tpu")
