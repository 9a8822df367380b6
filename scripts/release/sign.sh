#!/bin/bash
# Signs with cosign and a key: an artifact of a registry by its digest, with its documents, or the files of a folder.
# Usage: COSIGN_KEY=KEY sign.sh REFERENCE@sha256:DIGEST [TYPE=FILE]...
#        COSIGN_KEY=KEY sign.sh FOLDER
# KEY is a file, `env://VARIABLE` or a key service of cosign; its passphrase is in COSIGN_PASSWORD.
# TYPE is one of cosign's, for example `spdxjson` or `slsaprovenance1`. COSIGN_ALLOW_HTTP=1 is for a registry without TLS.
# FOLDER gets SHA256SUMS over all its files, its signature in SHA256SUMS.sigstore.json, and the public key in cosign.pub.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cosign=$root/.cache/bin/cosign
fail() { echo "[sign] error: $*" >&2; exit 1; }

what=${1:?must name what to sign, found nothing}
[[ -n ${COSIGN_KEY:-} ]] || fail "COSIGN_KEY must name the private key, found nothing"
[[ -x $cosign ]] || fail "$cosign must exist, found none; run \`make supply-chain\`"

# Without services: the signature needs no public log, no time stamp and no certificate, so it can be verified without a network.
services=$(mktemp -d)
trap 'rm -r "$services"' EXIT
"$cosign" signing-config create --out "$services/signing.json" 2>/dev/null
echo '{"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}' >"$services/root.json"
options=(--yes --key "$COSIGN_KEY" --signing-config "$services/signing.json" --trusted-root "$services/root.json")

if [[ -d $what ]]; then
  cd "$what"
  rm -f SHA256SUMS SHA256SUMS.sigstore.json
  "$cosign" public-key --key "$COSIGN_KEY" --outfile cosign.pub >/dev/null
  find . -type f ! -name SHA256SUMS -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum >"$services/sums"
  mv "$services/sums" SHA256SUMS
  "$cosign" sign-blob "${options[@]}" --bundle SHA256SUMS.sigstore.json SHA256SUMS >/dev/null
  exit 0
fi

# A tag can move between the build and the signature.
[[ $what =~ @sha256:[0-9a-f]{64}$ ]] || fail "the reference must end with @sha256: and the digest, found $what"
if [[ ${COSIGN_ALLOW_HTTP:-} == 1 ]]; then options+=(--allow-http-registry); fi
"$cosign" sign "${options[@]}" "$what"
for document in "${@:2}"; do
  "$cosign" attest "${options[@]}" --type "${document%%=*}" --predicate "${document#*=}" "$what"
done
