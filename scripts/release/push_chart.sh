#!/bin/bash
# Pushes a packed chart to a registry and signs it there; prints its reference with the digest.
# Usage: REGISTRY=HOST/PATH COSIGN_KEY=KEY push_chart.sh ARCHIVE. COSIGN_ALLOW_HTTP=1 is for a registry without TLS.
# The chart is REGISTRY/finetune-operator, beside the images: Docker Hub refuses a repository below another one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
archive=${1:?must name the chart\'s archive, found nothing}
registry=${REGISTRY:?must name a registry and a path in it}

options=()
if [[ ${COSIGN_ALLOW_HTTP:-} == 1 ]]; then options+=(--plain-http); fi
said=$("$root/.cache/bin/helm" push "$archive" "oci://$registry" "${options[@]}" 2>&1) || { echo "$said" >&2; exit 1; }
digest=$(sed -n 's/^Digest: //p' <<<"$said")
"$root/scripts/release/sign.sh" "$registry/finetune-operator@$digest" >&2
echo "$registry/finetune-operator@$digest"
