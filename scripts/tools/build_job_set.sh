#!/bin/bash
# Builds JobSet from its module into .cache/bin, and renders its own manifests beside it, in jobset.yaml.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/scripts/tools/build_go_tools.sh" jobset
exec "$root/scripts/tools/render_manifests.sh" jobset sigs.k8s.io/jobset
