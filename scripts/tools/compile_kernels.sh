#!/bin/bash
# Compiles the trainer's kernels for the dev cluster's thin image, as trainer_image/Dockerfile does for the real one. numba's cache
# belongs to the sources' path, so the checkout is seen at the image's path here, in a mount namespace of this process alone.
# Does nothing when sources and environment are those of the last run.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
image_root=/opt/finetune
kernels=.cache/kernels
stamp=$root/$kernels.stamp

say() { echo "[kernels] $*"; }

cd "$root"
# Times and sizes, not contents: they are what numba compares.
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
