#!/bin/bash
# Lists what is in an image as SPDX 2.3, with syft: the packages of the distribution and of Python, with versions, licenses and
# checksums of files. Usage: sbom.sh SOURCE NAME VERSION FILE.
# SOURCE is one of syft's, for example `registry:HOST/PATH@sha256:...` or `oci-dir:FOLDER`; NAME is the image's without a tag.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
syft=$root/.cache/bin/syft
[[ $# -eq 4 ]] || { echo "usage: sbom.sh SOURCE NAME VERSION FILE" >&2; exit 2; }
[[ -x $syft ]] || { echo "[sbom] error: $syft must exist, found none; run \`make supply-chain\`" >&2; exit 1; }

# The list is of this image alone, so nothing outside is asked for updates or licenses.
SYFT_CHECK_FOR_APP_UPDATE=false "$syft" scan "$1" --quiet --scope squashed --source-name "$2" --source-version "$3" \
  --output "spdx-json=$4"
file=$(realpath "$4")
cd "$root" && python3 -m scripts.release.declare_licenses "$file"
