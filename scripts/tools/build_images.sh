#!/bin/bash
# Builds both Dockerfiles without Docker and without a registry: with buildah, on a Debian base that debootstrap makes.
# Usage: build_images.sh [TAG [CONTEXT [operator|trainer]...]]. The tag is `built` if none is given, the context this repository.
# The images are docker.io/finetune/operator:TAG and docker.io/finetune/trainer:TAG in buildah's storage below .cache/images.
# `build_images.sh buildah ...` calls buildah on that storage, for example to push an image.
# A first run takes ten minutes on two cores, and 20 GB of disk for the layer with PyTorch, of which 8 GB stay.
# A run after a change of the project's own code rebuilds only the last layers. IMAGES_TMPDIR is for the copies of a layer.
# The Python packages come from uv's cache of this machine, if they are there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
images=$root/.cache/images
base=localhost/finetune-debian:bookworm
python=localhost/finetune-python:bookworm
bundle=/etc/ssl/certs/ca-certificates.crt

say() { echo "[images] $*"; }
fail() { echo "[images] error: $*" >&2; exit 1; }

# buildah keeps the cache mounts of builds in TMPDIR.
export TMPDIR=${IMAGES_TMPDIR:-$images/tmp} BUILDAH_ISOLATION=chroot
builder() { buildah --root "$images/storage" --runroot "$images/run" --storage-driver overlay "$@"; }

if [[ ${1:-} == buildah ]]; then builder "${@:2}"; exit; fi

[[ $EUID -eq 0 ]] || fail "buildah must run as root to mount layers, found uid $EUID; run this script as root"
mkdir -p "$images" "$TMPDIR"
"$root/scripts/tools/apt_packages.sh" builder
exec {lock}>"$images/lock"
flock "$lock"

# build OPTION... CONTEXT: the machine's certificates are only mounted, and no layer has them.
# A layer is copied twice while it is written; packed, the copies of PyTorch's take 6 GB instead of 13.
build() {
  builder bud --layers --pull-never --disable-compression=false --volume "$bundle:$bundle:ro" --build-arg "PIP_CERT=$bundle" \
    --build-arg "SSL_CERT_FILE=$bundle" "$@" 2>&1 | sed -u 's/^/[images] /'
}

make_base() {
  local tree=$images/debian container
  say "making Debian's base with debootstrap"
  rm -rf "$tree"
  # /dev and /proc belong to whoever runs the image.
  debootstrap --force-check-gpg --variant=minbase --include=ca-certificates bookworm "$tree" >"$images/debootstrap.log" 2>&1 ||
    fail "debootstrap must make the base, see $images/debootstrap.log: $(tail -n 3 "$images/debootstrap.log")"
  rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/* "$tree"/dev/* "$tree"/proc/*
  container=$(builder from scratch)
  builder add --quiet "$container" "$tree" / >/dev/null
  builder config --cmd /bin/sh "$container"
  builder commit --quiet --rm "$container" "$base" >/dev/null
  rm -rf "$tree"
}

started=$SECONDS
if [[ -z $(builder images --quiet --filter "reference=$base" 2>/dev/null) ]]; then make_base; fi
cache=$("$root/.venv/bin/uv" cache dir)
mkdir -p "$cache" "$TMPDIR/buildah-cache"
ln -sfn "$cache" "$TMPDIR/buildah-cache/finetune-uv"

# What the official image of Python has and Debian's base lacks.
build --tag "$python" --file - <<EOF
FROM $base
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv python-is-python3 \
    && rm -rf /var/lib/apt/lists/*
EOF
tag=${1:-built}
context=${2:-$root}
chosen=("${@:3}")
if [[ ${#chosen[@]} -eq 0 ]]; then chosen=(operator trainer); fi
for image in "${chosen[@]}"; do
  case $image in
    operator) options=(--build-arg "PYTHON_IMAGE=$python" --file "$context/operator/Dockerfile") ;;
    trainer) options=(--build-arg "CUDA_IMAGE=$base" --file "$context/trainer_image/Dockerfile") ;;
    *) fail "an image must be operator or trainer, found $image" ;;
  esac
  # buildah 1.28 mounts no stage whose layers all come from an earlier build, but it mounts an image.
  tools=localhost/finetune-tools-$image:$tag
  build "${options[@]}" --target tools --tag "$tools" "$context"
  build "${options[@]}" --build-context "tools=container-image://$tools" --tag "docker.io/finetune/$image:$tag" "$context"
  builder rmi "$tools" >/dev/null
done
say "built in $((SECONDS - started)) s:"
builder images --filter "reference=docker.io/finetune/*" | sed 's/^/[images] /'
