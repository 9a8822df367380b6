#!/bin/bash
# Builds Argo CD from its module into .cache/bin, and puts beside it its CRDs (argo-cd.yaml) and its script that looks for
# signatures of commits. Installs Redis for it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=$root/.cache/bin
"$root/scripts/tools/apt_packages.sh" redis
"$root/scripts/tools/build_go_tools.sh" argocd
[[ $bin/argo-cd.yaml -nt $bin/argo-cd ]] && exit 0

cd "$root/tools/devcluster/argocd"
go mod download github.com/argoproj/argo-cd/v3
module=$(go list -mod=readonly -m -f '{{.Dir}}' github.com/argoproj/argo-cd/v3)
install -m 755 "$module/hack/git-verify-wrapper.sh" "$bin/git-verify-wrapper.sh"
"$bin/kubectl" kustomize "$module/manifests/crds" >"$bin/argo-cd.yaml.new"
mv "$bin/argo-cd.yaml.new" "$bin/argo-cd.yaml"
echo "[argocd] rendered its CRDs"
