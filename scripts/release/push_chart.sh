#!/bin/bash
# Packs the chart with the digests of the images in FOLDER/IMAGE.image, pushes it to the registry and signs it there.
# Usage: REGISTRY=HOST/PATH COSIGN_KEY=KEY push_chart.sh FOLDER TARGET. TARGET gets the chart's archive.
# COSIGN_ALLOW_HTTP=1 is for a registry without TLS.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:?must name the folder with operator.image and trainer.image, found nothing}
target=${2:?must name the folder for the archive, found nothing}
charts=${REGISTRY:?must name a registry and a path in it}/charts

archive=$(.venv/bin/python -m scripts.release.package_chart "$target" --operator "$(<"$folder/operator.image")" \
  --trainer "$(<"$folder/trainer.image")")
options=()
if [[ ${COSIGN_ALLOW_HTTP:-} == 1 ]]; then options+=(--plain-http); fi
said=$(.cache/bin/helm push "$archive" "oci://$charts" "${options[@]}" 2>&1) || { echo "$said" >&2; exit 1; }
digest=$(sed -n 's/^Digest: //p' <<<"$said")
scripts/release/sign.sh "$charts/finetune-operator@$digest"
echo "$charts/finetune-operator@$digest"
