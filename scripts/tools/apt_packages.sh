#!/bin/bash
# Installs the Debian packages that the dev cluster needs: the container runtime, its network plugins, and the programs
# that kube-proxy and the images use. With the argument `prometheus`, installs Prometheus, promtool and amtool instead, with
# `redis` Redis and Git, which Argo CD needs, with `shells` zsh and fish, and with `builder` what builds images without Docker.
# Does nothing if every program is installed. It starts no service: the dev cluster starts its own containerd, inside its own
# namespaces.
set -euo pipefail

packages=(ca-certificates busybox-static containerd containernetworking-plugins iproute2 iptables nftables runc tini)
needed=(/bin/busybox /usr/bin/containerd /usr/bin/ctr /usr/bin/containerd-shim-runc-v2 /usr/lib/cni/bridge
  /usr/lib/cni/host-local /usr/lib/cni/loopback /usr/lib/cni/portmap ip iptables nft runc tini)
say() { echo "[apt] $*"; }
fail() { echo "[apt] error: $*" >&2; exit 1; }

case ${1:-} in
  "") ;;
  prometheus)
    packages=(prometheus prometheus-alertmanager)
    needed=(prometheus promtool amtool)
    ;;
  redis)
    packages=(redis-server git)
    needed=(redis-server git)
    ;;
  shells)
    packages=(fish zsh)
    needed=(fish zsh)
    ;;
  builder)
    packages=(buildah debian-archive-keyring debootstrap gpgv)
    needed=(buildah debootstrap)
    ;;
  *) fail "the argument must be prometheus, redis, shells, builder or none, found $1" ;;
esac

missing() {
  local program
  for program in "${needed[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || printf '%s ' "$program"
  done
}

absent=$(missing)
if [[ -z $absent ]]; then
  say "already present: ${packages[*]}"
  exit 0
fi
say "missing: $absent"
command -v apt-get >/dev/null ||
  fail "the tests must have ${packages[*]}, and this machine has no apt-get; install them by hand, or give a" \
    "cluster by KUBECONFIG, or use Docker: \`make demo CLUSTER=kind\`"
[[ $EUID -eq 0 ]] || fail "apt-get must run as root, found uid $EUID; run this script as root"

# Another part of set-up may call apt-get at the same time.
exec {lock}>/var/lock/finetune-apt
flock "$lock"

# invoke-rc.d asks this program whether it may start a service; 101 means no. An existing policy is restored afterwards.
policy=/usr/sbin/policy-rc.d
saved=$(mktemp -d)
restore() {
  rm -f "$policy"
  if [[ -e $saved/policy-rc.d ]]; then mv "$saved/policy-rc.d" "$policy"; fi
  rmdir "$saved"
}
if [[ -e $policy ]]; then mv "$policy" "$saved/policy-rc.d"; fi
trap restore EXIT
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
say "reading the package lists"
apt-get update -qq
say "installing ${packages[*]}"
apt-get install -y -qq --no-install-recommends "${packages[@]}" >"$saved.log" 2>&1 ||
  fail "apt-get install ended with an error: $(tail -n 5 "$saved.log")"
rm -f "$saved.log"
absent=$(missing)
[[ -z $absent ]] || fail "after the installation these programs must exist, and do not: $absent"
say "installed: $(dpkg-query -W -f='${Package} ${Version}, ' "${packages[@]}")"
