from __future__ import annotations

from typing import Any

import click
import pytest
from finetune_cli.cluster.client import Client
from finetune_cli.cluster.kubectl import Kubectl
from finetune_cli.kept.options import reader_options


def test_the_options_have_kubectls_defaults() -> None:
    @click.command()
    @reader_options
    def command(**options: Any) -> dict[str, Any]:
        return options

    assert command.main([], standalone_mode=False) == {"client": Client(), "image": None, "timeout": 180}
    found = command.main(["-n", "team", "--timeout", "9"], standalone_mode=False)
    assert found == {"client": Client(Kubectl("team")), "image": None, "timeout": 9}
    with pytest.raises(click.BadParameter):
        command.main(["--timeout", "0"], standalone_mode=False)
