from __future__ import annotations

import argparse

from finetune_cli.kept.options import add_reader_options


def test_the_options_have_kubectls_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_reader_options(parser)
    options = parser.parse_args([])
    assert (options.namespace, options.context, options.image, options.timeout) == (None, None, None, 180)
    assert parser.parse_args(["-n", "team", "--timeout", "9"]).timeout == 9
