#!/bin/bash
# Builds Argo CD from its module into .cache/bin, renders its CRDs beside it, in argo-cd.yaml, and installs Redis for it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=$root/.cache/bin
"$root/scripts/tools/apt_packages.sh" redis
"$root/scripts/tools/build_go_tools.sh" argocd
[[ $bin/argo-cd.yaml -nt $bin/argo-cd ]] && exit 0

cd "$root/tools/devcluster/argocd"
module=$(go list -mod=readonly -m -f '{{.Dir}}' github.com/argoproj/argo-cd/v3)
"$bin/kubectl" kustomize "$module/manifests/crds" >"$bin/argo-cd.yaml.new"
mv "$bin/argo-cd.yaml.new" "$bin/argo-cd.yaml"
echo "[argocd] rendered its CRDs"
