#!/bin/bash
# Builds the Kubernetes components and etcd of the dev cluster into .cache/bin: one binary and a link per component.
# Does nothing if the sources, the flags and the Go version are those of the last build. A cold build takes about nine minutes
# on two cores; with a warm Go build cache (also from another clone, because of -trimpath) it takes seconds.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source_folder=$root/tools/devcluster/components
bin=$root/.cache/bin
components=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)

say() { echo "[components] $*"; }
fail() { echo "[components] error: $*" >&2; exit 1; }

needed_go=$(awk '$1 == "go" { print $2 }' "$source_folder/go.mod")
command -v go >/dev/null ||
  fail "Go $needed_go or newer must be on PATH to build the dev cluster, found none; install it from https://go.dev/dl, or" \
    "set KUBECONFIG to an existing cluster, or use Docker: \`make demo CLUSTER=kind\`"
found_go=$(go env GOVERSION)
oldest=$(printf '%s\n%s\n' "$needed_go" "${found_go#go}" | sort -V | head -n1)
[[ $oldest == "$needed_go" || $(go env GOTOOLCHAIN) == auto ]] ||
  fail "Go must be $needed_go or newer, found ${found_go#go} at $(command -v go); install a newer one"

kubernetes=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$source_folder/go.mod")
IFS=. read -r major minor _ <<<"${kubernetes#v}"
package=k8s.io/component-base/version
# Without these the API server calls itself v0.0.0-master and clients cannot read its version.
ldflags="-s -w -X $package.gitVersion=$kubernetes -X $package.gitMajor=$major -X $package.gitMinor=$minor"
stamp=$bin/kubernetes-components.stamp
key=$(cat "$source_folder"/{go.mod,go.sum,main.go} <(echo "$found_go $ldflags") | sha256sum | cut -d' ' -f1)

built() {
  local component
  [[ -f $stamp && $(<"$stamp") == "$key" && -x $bin/kubernetes-components ]] || return 1
  for component in "${components[@]}"; do [[ -x $bin/$component ]] || return 1; done
}
if built; then
  say "already built: Kubernetes $kubernetes"
  exit 0
fi

mkdir -p "$bin"
rm -f "$stamp"
cd "$source_folder"
say "building Kubernetes $kubernetes with $found_go; fetching modules"
go mod download 2>&1 | sed 's/^/[components] /'
go mod verify | sed 's/^/[components] /'
started=$SECONDS
# -v prints each package that is compiled (not those from the cache). No other progress is available.
CGO_ENABLED=0 go build -v -trimpath -mod=readonly -ldflags "$ldflags" -o "$bin/kubernetes-components.new" . 2>&1 |
  awk -v every=100 '/^[A-Za-z0-9_.\/-]+$/ { if (++n % every == 0) { print "[components] compiled " n " packages"; fflush() } next }
    { print "[components] " $0; fflush() }'
mv "$bin/kubernetes-components.new" "$bin/kubernetes-components"
for component in "${components[@]}"; do ln -sfn kubernetes-components "$bin/$component"; done
# Only a run of the binary proves that it works.
reported=$("$bin/kubelet" --version)
[[ $reported == "Kubernetes $kubernetes" ]] || fail "the kubelet must report Kubernetes $kubernetes, found: $reported"
echo "$key" >"$stamp"
say "built $reported and $("$bin/etcd" --version | head -n1) in $((SECONDS - started)) s"
