#!/bin/bash
# Renders the manifests of a controller's module beside its program: render_manifests.sh FOLDER MODULE. FOLDER is one of
# tools/devcluster. Does nothing if they are newer than the program.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=$root/.cache/bin
folder=${1:?must name a folder of tools/devcluster, found nothing}
module=${2:?must name a Go module, found nothing}
[[ $bin/$folder.yaml -nt $bin/$folder ]] && exit 0

cd "$root/tools/devcluster/$folder"
go mod download "$module"
source=$(go list -mod=readonly -m -f '{{.Dir}}' "$module")
"$bin/kubectl" kustomize "$source/config/default" >"$bin/$folder.yaml.new"
mv "$bin/$folder.yaml.new" "$bin/$folder.yaml"
echo "[$folder] rendered its manifests"
