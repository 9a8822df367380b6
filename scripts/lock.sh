#!/usr/bin/env bash
# Regenerates requirements/*.txt from pyproject.toml: each package with its version and file hashes, without an index
# address. Versions stay the same unless pyproject.toml excludes them. `--upgrade` takes the newest version of every
# package, and `--upgrade-package NAME` that of one package.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p requirements
export UV_CUSTOM_COMPILE_COMMAND="make lock"

# lock FILE OPTION...: resolve for every platform and every Python from 3.11 on.
lock() {
  local file=requirements/$1
  shift
  echo "[lock] $file"
  .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url \
    --no-emit-find-links --output-file "$file" "$@" pyproject.toml
}

lock dev.txt --extra operator --extra trainer --extra cli --extra client --group dev "$@"
# The images get the versions that the tests ran with.
lock operator.txt --constraint requirements/dev.txt --extra operator "$@"
lock trainer.txt --constraint requirements/dev.txt --extra trainer "$@"
lock cli.txt --constraint requirements/dev.txt --extra cli "$@"
lock client.txt --constraint requirements/dev.txt --extra client "$@"
lock archive.txt --constraint requirements/dev.txt --group archive "$@"
lock build.txt --constraint requirements/dev.txt --group build "$@"
lock data.txt --no-deps --group data "$@"
lock binaries.txt --no-deps --group binaries "$@"
lock installer.txt --group installer "$@"
lock transformers4.txt --no-deps --group transformers4 "$@"
# Only `make test-full` installs these four.
lock checkers.txt --group checkers "$@"
lock llama-cpp.txt --group llama-cpp "$@"
lock trackers.txt --group trackers "$@"
lock vllm.txt --override <(echo "torch==2.13.0") --group vllm "$@"
