#!/bin/bash
# Builds the tools of a Go module in tools/devcluster or tools into .cache/bin: build_go_tools.sh FOLDER [BUILD-TAGS].
# Does nothing if the pinned modules, the tags and the Go version are those of the last build. With a warm Go build cache
# (also from another clone, because of -trimpath) a build takes seconds. Cold builds on two cores take, in minutes:
# objectstore (versitygw speaks S3, fake-gcs-server Cloud Storage) 3, registry 1.5, kueue 4, kwok 3, jobset 4,
# kubeflow_trainer 5, argocd 10, containerd (version 2, with its shim) 3, cosign 6, syft 6, krew 0.5, oras 0.5.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:?must name a folder of tools/devcluster or tools, found nothing}
tags=${2:-}
source_folder=$root/tools/devcluster/$folder
if [[ ! -d $source_folder ]]; then source_folder=$root/tools/$folder; fi
bin=$root/.cache/bin
stamp=$bin/$folder.stamp

say() { echo "[$folder] $*"; }
fail() { echo "[$folder] error: $*" >&2; exit 1; }

needed_go=$(awk '$1 == "go" { print $2 }' "$source_folder/go.mod")
command -v go >/dev/null ||
  fail "Go $needed_go or newer must be on PATH to build the tests' tools, found none; install it from https://go.dev/dl"
found_go=$(go env GOVERSION)
oldest=$(printf '%s\n%s\n' "$needed_go" "${found_go#go}" | sort -V | head -n1)
[[ $oldest == "$needed_go" || $(go env GOTOOLCHAIN) == auto ]] ||
  fail "Go must be $needed_go or newer, found ${found_go#go} at $(command -v go); install a newer one"

cd "$source_folder"
mapfile -t packages < <(go mod edit -json | python3 -c 'import json, sys; [print(tool["Path"]) for tool in json.load(sys.stdin)["Tool"]]')
key=$(cat go.mod go.sum <(echo "$found_go${tags:+ $tags}") | sha256sum | cut -d' ' -f1)
# The program of a package: its last element, or for MODULE/v3/cmd that of the module.
program_of() {
  local package=${1%/cmd}
  package=${package%/v[0-9]}
  echo "${package##*/}"
}
built() {
  local package
  [[ -f $stamp && $(<"$stamp") == "$key" ]] || return 1
  for package in "${packages[@]}"; do [[ -x $bin/$(program_of "$package") ]] || return 1; done
}
if built; then
  say "already built"
  exit 0
fi

mkdir -p "$bin"
rm -f "$stamp"
started=$SECONDS
say "fetching modules with $found_go"
go mod download 2>&1 | sed "s/^/[$folder] /"
go mod verify | sed "s/^/[$folder] /"
for package in "${packages[@]}"; do
  program=$(program_of "$package")
  say "building $program"
  CGO_ENABLED=0 go build -trimpath -mod=readonly -tags "$tags" -ldflags "-s -w" -o "$bin/$program.new" "$package"
  mv "$bin/$program.new" "$bin/$program"
done
echo "$key" >"$stamp"
say "built ${packages[*]} in $((SECONDS - started)) s"
