#!/bin/bash
# Builds Kubeflow Trainer and JobSet, with which the scale benchmark compares the operator, into .cache/bin. Their manifests
# and a second build of the trainer go to .cache/peer. The second build has the client limits of the first one lifted: it
# takes a copy of controller-runtime in which only these two numbers differ.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=$root/.cache/bin
peer=$root/.cache/peer
limit=5000
"$root/scripts/tools/build_go_tools.sh" jobset
"$root/scripts/tools/build_go_tools.sh" kubeflow_trainer
[[ -x $peer/trainer-controller-manager && $peer/stamp -nt $bin/kubeflow_trainer.stamp && $peer/stamp -nt $bin/jobset.stamp ]] && exit 0

rm -rf "$peer"
mkdir -p "$peer/manifests"
module() { (cd "$root/tools/devcluster/$1" && go mod download "$2" && go list -mod=readonly -m -f '{{.Dir}}' "$2"); }
jobset=$(module jobset sigs.k8s.io/jobset)
trainer=$(module kubeflow_trainer github.com/kubeflow/trainer/v2)
cp "$jobset/config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml" "$peer/manifests/"
cp "$jobset/config/components/webhook/manifests.yaml" "$peer/manifests/jobset_webhooks.yaml"
cp "$trainer/manifests/base/crds/"trainer.kubeflow.org_*.yaml "$peer/manifests/"
cp "$trainer/manifests/base/runtimes/torch_distributed.yaml" "$peer/manifests/"

echo "[peer] building the trainer without client limits"
cp -r --no-preserve=mode "$(module kubeflow_trainer sigs.k8s.io/controller-runtime)" "$peer/controller-runtime"
settings=$peer/controller-runtime/pkg/client/config/config.go
sed -i -E "s/cfg\.QPS = [0-9.]+/cfg.QPS = $limit/; s/cfg\.Burst = [0-9]+/cfg.Burst = $limit/" "$settings"
[[ $(grep -cE "cfg\.(QPS|Burst) = $limit" "$settings") == 2 ]] ||
  { echo "[peer] error: $settings must set QPS and Burst once each; adapt this script to the new controller-runtime" >&2; exit 1; }
cp "$root/tools/devcluster/kubeflow_trainer/go.mod" "$root/tools/devcluster/kubeflow_trainer/go.sum" "$peer/"
cd "$peer"
go mod edit -replace "sigs.k8s.io/controller-runtime=$peer/controller-runtime"
CGO_ENABLED=0 go build -trimpath -mod=mod -ldflags "-s -w" -o "$peer/trainer-controller-manager" \
  github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager
rm -rf "$peer/controller-runtime" "$peer/go.mod" "$peer/go.sum"
touch "$peer/stamp"
