#!/usr/bin/env bash
# packages.sh [PACKAGE...]   Installs those Debian packages (default: what the Pods part needs) that are missing, and
# starts none of their services.
set -euo pipefail
[ $# -gt 0 ] || set -- containerd runc containernetworking-plugins conntrack iptables iproute2 nftables openssl prometheus
missing=()
for p in "$@"; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
wait_lock=(-o DPkg::Lock::Timeout=400)
# 101: no service may be started. An administrator's own policy stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; trap 'rm -f $policy' EXIT
fi
install() { apt-get "${wait_lock[@]}" install -qq -y --no-install-recommends "${missing[@]}" < /dev/null >&2; }
install || { apt-get "${wait_lock[@]}" update -qq >&2; install; }
# Nor may they start with the machine.
if [ -d /run/systemd/system ]; then
  for p in "${missing[@]}"; do
    for unit in $(dpkg -L "$p" | sed -n 's#.*/systemd/system/\([^/@]*\.\(service\|timer\)\)$#\1#p'); do
      systemctl disable --now --quiet "$unit" || true
    done
  done
fi
