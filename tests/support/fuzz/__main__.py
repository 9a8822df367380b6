"""Print the hostile FineTuneJob of one seed: `python -m tests.support.fuzz --seed 7`."""

from __future__ import annotations

import argparse
import sys

from tests.support.fuzz.subjects import Resources


def main() -> None:
    """Print what is odd about the resource, and its body as it is sent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True, help="the seed that a failed test names")
    resource = Resources().make(parser.parse_args().seed)
    print(f"{resource.kind} at {resource.place}, query {resource.query}", file=sys.stderr)
    print(resource.body.decode("ascii"))


if __name__ == "__main__":
    main()
