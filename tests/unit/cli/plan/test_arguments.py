from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from finetune_cli.plan.arguments import add_plan_options, add_volume_options, claim


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_plan_options(parser)
    return parser.parse_args(arguments)


def test_a_claim_and_its_folder_are_separated_at_the_first_equals_sign() -> None:
    assert claim("models=/data/a=b") == ("models", Path("/data/a=b"))


@pytest.mark.parametrize("text", ["models", "models=", "=/data", "", "="])
def test_a_claim_without_name_or_folder_is_rejected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be CLAIM=FOLDER, found"):
        claim(text)


def test_repeatable_options_are_collected_in_order() -> None:
    found = parse(
        *("--gpu", "L4", "--gpu", "A40", "--set", "training.seed=1", "--set", "training.epochs=2"),
        *("--volume", "a=x", "--volume", "b=y"),
    )
    assert found.gpu == ["L4", "A40"]
    assert found.settings == ["training.seed=1", "training.epochs=2"]
    assert dict(found.volume) == {"a": Path("x"), "b": Path("y")}


def test_without_options_nothing_is_set() -> None:
    found = vars(parse())
    assert found.pop("volumes") == Path(".finetune/volumes")
    assert found.pop("device") == "cuda"
    assert not any(found.values())


def test_volume_options_are_the_same_for_every_command() -> None:
    parser = argparse.ArgumentParser()
    add_volume_options(parser)
    assert vars(parser.parse_args([])).items() <= vars(parse()).items()
