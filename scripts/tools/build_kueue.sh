#!/bin/bash
# Builds Kueue from its module into .cache/bin, and renders its own manifests beside it, in kueue.yaml.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=$root/.cache/bin
"$root/scripts/tools/build_go_tools.sh" kueue
[[ $bin/kueue.yaml -nt $bin/kueue ]] && exit 0

cd "$root/tools/devcluster/kueue"
go mod download sigs.k8s.io/kueue
module=$(go list -mod=readonly -m -f '{{.Dir}}' sigs.k8s.io/kueue)
"$bin/kubectl" kustomize "$module/config/default" >"$bin/kueue.yaml.new"
mv "$bin/kueue.yaml.new" "$bin/kueue.yaml"
echo "[kueue] rendered its manifests"
