#!/usr/bin/env bash
# Installs checkov and the SPDX tools into .cache/checkers, exactly as requirements/checkers.txt locks them: their own pins
# fight with those of .venv. Does nothing if the lock is that of the last run.
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { printf '[checkers] %s\n' "$*" >&2; }

lock=requirements/checkers.txt
folder=.cache/checkers
stamp=$folder.stamp
wanted=$({ .venv/bin/python --version; cat "$lock" scripts/tools/checkers.sh; } | sha256sum | cut -c1-64)
if [[ -f $stamp && $(<"$stamp") == "$wanted" && -d $folder ]]; then
  say "already installed"; exit 0
fi
started=$SECONDS
rm -f "$stamp"
mkdir -p "${folder%/*}"
.venv/bin/uv venv --quiet --clear --python .venv/bin/python "$folder"
.venv/bin/uv pip install --quiet --python "$folder/bin/python" --no-deps --require-hashes --requirement "$lock"
echo "$wanted" >"$stamp"
say "installed in $((SECONDS - started)) s"
