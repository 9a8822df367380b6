#!/bin/bash
# Builds the object stores that the tests fetch from (versitygw speaks S3, fake-gcs-server Cloud Storage) into .cache/bin.
# Does nothing if the pinned modules, the flags and the Go version are those of the last build. A cold build takes about three
# minutes on two cores; with a warm Go build cache (also from another clone, because of -trimpath) it takes seconds.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source_folder=$root/tools/devcluster/objectstore
bin=$root/.cache/bin
stamp=$bin/object-stores.stamp

say() { echo "[object stores] $*"; }
fail() { echo "[object stores] error: $*" >&2; exit 1; }

needed_go=$(awk '$1 == "go" { print $2 }' "$source_folder/go.mod")
command -v go >/dev/null ||
  fail "Go $needed_go or newer must be on PATH to build the tests' object stores, found none; install it from https://go.dev/dl"
found_go=$(go env GOVERSION)
oldest=$(printf '%s\n%s\n' "$needed_go" "${found_go#go}" | sort -V | head -n1)
[[ $oldest == "$needed_go" || $(go env GOTOOLCHAIN) == auto ]] ||
  fail "Go must be $needed_go or newer, found ${found_go#go} at $(command -v go); install a newer one"

cd "$source_folder"
mapfile -t packages < <(go mod edit -json | python3 -c 'import json, sys; [print(tool["Path"]) for tool in json.load(sys.stdin)["Tool"]]')
key=$(cat go.mod go.sum <(echo "$found_go") | sha256sum | cut -d' ' -f1)
built() {
  local package
  [[ -f $stamp && $(<"$stamp") == "$key" ]] || return 1
  for package in "${packages[@]}"; do [[ -x $bin/${package##*/} ]] || return 1; done
}
if built; then
  say "already built"
  exit 0
fi

mkdir -p "$bin"
rm -f "$stamp"
started=$SECONDS
say "fetching modules with $found_go"
go mod download 2>&1 | sed 's/^/[object stores] /'
go mod verify | sed 's/^/[object stores] /'
for package in "${packages[@]}"; do
  say "building ${package##*/}"
  CGO_ENABLED=0 go build -trimpath -mod=readonly -ldflags "-s -w" -o "$bin/${package##*/}.new" "$package"
  mv "$bin/${package##*/}.new" "$bin/${package##*/}"
done
echo "$key" >"$stamp"
say "built ${packages[*]##*/} in $((SECONDS - started)) s"
