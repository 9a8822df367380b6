#!/usr/bin/env bash
# Installs transformers 4 into .cache/loaders/transformers-4, exactly as requirements/transformers4.txt locks it.
# torch, numpy and the rest come from .venv, so this takes seconds and 75 MB. Does nothing if the lock is that of the last run.
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { printf '[loaders] %s\n' "$*" >&2; }

lock=requirements/transformers4.txt
folder=.cache/loaders/transformers-4
stamp=$folder.stamp
wanted=$({ .venv/bin/python --version; cat "$lock" scripts/tools/loaders.sh; } | sha256sum | cut -c1-64)
if [[ -f $stamp && $(<"$stamp") == "$wanted" && -d $folder ]]; then
  say "already installed"; exit 0
fi
started=$SECONDS
rm -rf "$folder" "$stamp"
mkdir -p "${folder%/*}"
.venv/bin/uv pip install --quiet --python .venv/bin/python --target "$folder" --no-deps --require-hashes --requirement "$lock"
echo "$wanted" >"$stamp"
say "installed in $((SECONDS - started)) s"
