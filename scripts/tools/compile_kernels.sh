#!/bin/bash
# Compiles the trainer's kernels for the dev cluster's thin image, as trainer_image/Dockerfile does for the real one.
# numba's cache depends on the path of the sources. So a private mount namespace shows the checkout at the image's path.
# Does nothing if sources and environment are those of the last run.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
image_root=/opt/finetune
kernels=.cache/kernels
stamp=$root/$kernels.stamp

say() { echo "[kernels] $*"; }

cd "$root"
# Times and sizes, not contents, because numba compares these.
key=$( { find trainer_image/src -name '*.py' -printf '%P %T@ %s\n' | sort; cat .venv/pyvenv.cfg; grep -m1 'model name' /proc/cpuinfo; } | sha256sum | cut -d' ' -f1)
if [[ -f $stamp && $(<"$stamp") == "$key" && -d $kernels ]]; then
  say "already compiled"
  exit 0
fi
rm -rf "$kernels" "$stamp"
mkdir -p .cache
started=$SECONDS
# The inner shell expands its own arguments.
# shellcheck disable=SC2016
unshare --mount --propagation private bash -euc '
  mount -t tmpfs tmpfs /opt
  mkdir "$2"
  mount --bind "$1" "$2"
  cd "$2"
  PYTHONPATH=$2/trainer_image/src "$2/.venv/bin/python" -m finetune_trainer compile "$2/$3"
' compile "$root" "$image_root" "$kernels"
chmod -R a+rX "$kernels"
echo "$key" >"$stamp"
say "compiled in $((SECONDS - started)) s"
