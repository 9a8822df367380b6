#!/bin/bash
# Builds an image with Docker on a base that is pinned by digest, pushes it, and writes what a release says about it.
# Usage: REGISTRY=HOST/PATH push_image.sh operator|trainer VERSION FOLDER, in GitHub Actions, signed in to the registry.
# FOLDER gets IMAGE.image (the reference with its digest), IMAGE.spdx.json and IMAGE.provenance.json.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
image=${1:?must be operator or trainer, found nothing}
version=${2:?must be the version, found nothing}
folder=${3:?must name the folder to write to, found nothing}
case $image in
  operator) dockerfile=operator/Dockerfile base_argument=PYTHON_IMAGE ;;
  trainer) dockerfile=trainer_image/Dockerfile base_argument=CUDA_IMAGE ;;
  *) echo "[push] error: the image must be operator or trainer, found $image" >&2; exit 1 ;;
esac

mkdir -p "$folder"
started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
name=${REGISTRY:?must name a registry and a path in it}/$image
base=$(sed -n "s/^ARG $base_argument=//p" "$dockerfile")
base=$base@$(docker buildx imagetools inspect "$base" --format '{{.Manifest.Digest}}')
arguments=("VERSION=$version" "REVISION=$GITHUB_SHA" "$base_argument=$base")
# Docker's own attestations would be unsigned ones beside the signed.
docker buildx build --file "$dockerfile" --tag "$name:$version" --platform linux/amd64 --push --provenance=false --sbom=false \
  --metadata-file "$folder/$image.metadata" "${arguments[@]/#/--build-arg=}" .
digest=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["containerimage.digest"])' "$folder/$image.metadata")
rm "$folder/$image.metadata"
echo "$name@$digest" >"$folder/$image.image"
scripts/release/sbom.sh "registry:$name@$digest" "$name" "$version" "$folder/$image.spdx.json"
python3 -m scripts.release.provenance "$dockerfile" --base "$base" --started "$started" "${arguments[@]/#/--argument=}" \
  >"$folder/$image.provenance.json"
