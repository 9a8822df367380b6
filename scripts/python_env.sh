#!/usr/bin/env bash
# Makes .venv with exactly the packages that requirements/ locks, and the project itself in editable form.
# Does nothing if pyproject.toml and the locks are those of the last run.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '[python] %s\n' "$*" >&2; }

PYTHON=${PYTHON:-python3}
if ! command -v "$PYTHON" >/dev/null; then
  say "error: Python 3.11 or newer must be on PATH, found none; install it or set PYTHON"; exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  say "error: Python 3.11 or newer is needed, found $("$PYTHON" --version 2>&1); set PYTHON to a newer one"; exit 1
fi

locks=(requirements/dev.txt requirements/data.txt requirements/installer.txt)
wanted=$({ "$PYTHON" --version; sha256sum pyproject.toml "${locks[@]}" scripts/python_env.sh; pwd; } | sha256sum | cut -c1-64)
stamp=.venv/.finetune-stamp
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  say ".venv is up to date"; exit 0
fi

started=$SECONDS
if [ ! -x .venv/bin/python ]; then
  if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    say "installing python3-venv (Debian does not ship ensurepip with Python)"
    # The lock is needed because other parts of set-up can call apt-get at the same time.
    flock /var/lock/finetune-apt sh -c 'apt-get update -q && apt-get install -yq --no-install-recommends python3-venv'
  fi
  say "creating .venv with $("$PYTHON" --version)"
  "$PYTHON" -m venv .venv
fi
say "installing uv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/installer.txt
say "installing packages (torch brings 3 GB)"
# `sync` resolves nothing: the locks are complete, including the packages that only carry data.
# Its list of 150 packages is left out of the output.
.venv/bin/uv pip sync --python .venv/bin/python --require-hashes "${locks[@]}" 2>&1 | sed '/^ [-+~] /d; s/^/[python] /' >&2
# hatchling comes from the lock, so nothing is fetched here.
.venv/bin/uv pip install --python .venv/bin/python --quiet --no-deps --no-build-isolation --editable .
say "installed in $((SECONDS - started)) s"
# Pods of the dev cluster mount .venv read-only and would compile these modules at every start. Most modules are never
# imported; they stay uncompiled.
compiling=$SECONDS
.venv/bin/python scripts/tools/compile_imports.py
say "compiled what the project imports in $((SECONDS - compiling)) s"
echo "$wanted" > "$stamp"
say ".venv is ready"
