#!/bin/bash
# Builds Prometheus from its module into .cache/bin, with the discovery of Kubernetes alone, and without its pages.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/scripts/tools/build_go_tools.sh" prometheus remove_all_sd,enable_kubernetes_sd
