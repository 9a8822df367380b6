#!/bin/bash
# Builds Kueue from its module into .cache/bin, and renders its own manifests beside it, in kueue.yaml.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/scripts/tools/build_go_tools.sh" kueue
exec "$root/scripts/tools/render_manifests.sh" kueue sigs.k8s.io/kueue
