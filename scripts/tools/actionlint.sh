#!/bin/bash
# Checks .github/workflows with actionlint, built from the module that tools/actionlint pins. With a warm Go build cache it
# takes a second; the first build takes under a minute.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { echo "[actionlint] error: $*" >&2; exit 1; }

command -v go >/dev/null || fail "Go must be on PATH to build actionlint, found none; install it from https://go.dev/dl"
# shellcheck and pyflakes are disabled even if this machine has them, so that all machines find the same.
CGO_ENABLED=0 go -C tools/actionlint tool actionlint -no-color -shellcheck= -pyflakes= "$PWD"/.github/workflows/*.yaml
echo "[actionlint] the workflows are correct"
