from __future__ import annotations

from typing import Any

import click
from finetune_cli.kept.options import reader_options


def test_the_options_have_kubectls_defaults() -> None:
    @click.command()
    @reader_options
    def command(**options: Any) -> dict[str, Any]:
        return options

    nothing = {"namespace": None, "context": None, "kubeconfig": None, "image": None, "timeout": 180}
    assert command.main([], standalone_mode=False) == nothing
    assert command.main(["-n", "team", "--timeout", "9"], standalone_mode=False)["timeout"] == 9
