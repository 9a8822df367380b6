"""Command line of the dev cluster.

up                      start it and return; it lives until `down`
down                    stop it and remove all its traces, also after a crash
status                  print whether it runs; exit status 3 if it does not
kubeconfig              print the path of the administrator's kubeconfig
run -- COMMAND          start it, run COMMAND with KUBECONFIG set, stop it; it ends with this process
image NAME --entrypoint ARG...   import a thin image
gpus --product ... --memory-mib ... --count ...   set the node's pretend GPUs
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from types import FrameType

from devcluster import cluster, gpus, images, linux
from devcluster.errors import DevClusterError
from devcluster.layout import NODE_NAME, Layout

_NOT_RUNNING = 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m devcluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--name", default="dev", help="name of the cluster; several can run at the same time (default: dev)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "down", "status", "kubeconfig"):
        commands.add_parser(name)
    run = commands.add_parser("run")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="command to run")
    image = commands.add_parser("image")
    image.add_argument("image", metavar="NAME", help="full name, as docker.io/finetune/operator:dev")
    image.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help="environment variable")
    image.add_argument("--user", type=int, default=images.NONROOT, help="numeric user")
    image.add_argument("--entrypoint", nargs=argparse.REMAINDER, required=True, help="argv; must come last")
    pretend = commands.add_parser("gpus")
    default = gpus.Gpus()
    pretend.add_argument("--node", default=NODE_NAME)
    pretend.add_argument("--product", default=default.product, help="value of nvidia.com/gpu.product")
    pretend.add_argument(
        "--memory-mib", type=int, default=default.memory_mib, help="memory of one GPU in MiB"
    )
    pretend.add_argument("--count", type=int, default=default.count, help="number of GPUs; 0 removes them")
    return parser


def _terminate(number: int, _frame: FrameType | None) -> None:
    # Unwinds through the `finally` blocks, which stop the cluster.
    raise SystemExit(128 + number)


def _run(layout: Layout, argv: list[str]) -> int:
    """Run `argv` with a new cluster; return its exit status, or 128 + N if signal N ended it."""
    command = argv[1:] if argv[:1] == ["--"] else argv
    if not command:
        raise DevClusterError("run must be given a command, found none; write `run -- COMMAND ARGUMENTS`")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    linux.die_with_parent(signal.SIGTERM, os.getppid())
    with cluster.running(layout):
        own = os.getpid()
        process = subprocess.Popen(
            command,
            env={**os.environ, "KUBECONFIG": str(layout.kubeconfig)},
            preexec_fn=lambda: linux.die_with_parent(signal.SIGTERM, own),  # noqa: PLW1509  no thread runs in this process
        )
        try:
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return status if status >= 0 else 128 - status


def _main(arguments: argparse.Namespace) -> int:
    layout = Layout(arguments.name)
    match arguments.command:
        case "up":
            cluster.start(layout, die_with_caller=False)
            print(
                f"{layout.name}: ready in {cluster.bring_up_seconds(layout):.1f} s; export KUBECONFIG={layout.kubeconfig}"
            )
        case "down":
            print(f"{layout.name}: {'ended' if cluster.stop(layout) else 'was not running'}, nothing left")
        case "status":
            found = cluster.status(layout)
            if not found.running:
                print(f"{layout.name}: not running")
                return _NOT_RUNNING
            print(
                f"{layout.name}: {'ready' if found.ready else 'starting'}, owner {found.owner}, {layout.kubeconfig}"
            )
        case "kubeconfig":
            cluster.client(layout)
            print(layout.kubeconfig)
        case "run":
            return _run(layout, arguments.argv)
        case "image":
            cluster.client(layout)
            environment = dict(setting.split("=", 1) for setting in arguments.env)
            image = images.ThinImage(arguments.image, arguments.entrypoint, environment, arguments.user)
            images.import_images(layout.containerd_socket, [image])
        case "gpus":
            wanted = gpus.Gpus(arguments.product, arguments.memory_mib, arguments.count)
            gpus.set_gpus(cluster.client(layout), wanted, arguments.node)
    return 0


def main() -> int:
    """Run the command line; on failure, print a message to stderr and return 1."""
    try:
        return _main(_parser().parse_args())
    except DevClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
