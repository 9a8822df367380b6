#!/bin/bash
# Writes what a release carries for those who verify artifacts: verify.py and its SHA-256. Usage: verifier.sh FOLDER.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:?must name the folder to write to, found nothing}

mkdir -p "$folder"
cp "$root/cli/src/finetune_cli/verify.py" "$folder/verify.py"
chmod 644 "$folder/verify.py"
cd "$folder"
# Without the repository and without packages: this is how people run it.
python3 -I verify.py --help >/dev/null
sha256sum verify.py >verify.py.sha256
cat verify.py.sha256
