#!/usr/bin/env bash
# Run targets of the Makefile in a clean Debian 13, whose Python is 3.13: tests/newest.sh TARGET ...
#
# The system is in build/newest; debootstrap installs it if it is missing. It contains a clone of this
# repository at its last commit. Its mounts and processes end with this script. From the environment
# it gets only what pip needs to find and trust its servers.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/build/newest
otherwise="or install Python 3.13 and run make PYTHON=python3.13 VENV=.venv-newest test"

if [ "$(id -u)" != 0 ]; then
  echo "make test-newest needs root rights to install a Debian 13; run it as root, $otherwise" >&2
  exit 1
fi
if [ ! -e "$root" ]; then
  command -v debootstrap > /dev/null || { apt-get update -q; apt-get install -q -y debootstrap; } || {
    echo "make test-newest needs debootstrap; install it, $otherwise" >&2
    exit 1
  }
  rm -rf "$root.part"
  debootstrap --variant=minbase --include=ca-certificates,make,python3-venv trixie "$root.part"
  mv "$root.part" "$root"
fi
cp /etc/hosts /etc/resolv.conf "$root/etc"  # processes find each other by the name of this host
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs"  # also has certificates added on this host

clone=$root/obscura_jax
git diff --quiet HEAD || echo "make test-newest tests the last commit, without your changes" >&2
[ -e "$clone" ] || git clone -q . "$clone"
git -C "$clone" fetch -q "$PWD" HEAD
git -C "$clone" checkout -q --detach FETCH_HEAD

mapfile -t kept < <(env | grep -E '^(PIP_[A-Z_]+|[A-Za-z]+_(proxy|PROXY))=' | grep -vE '^PIP_(CERT|CONFIG_FILE|CACHE_DIR)=')
kept+=(PIP_CERT=/etc/ssl/certs/ca-certificates.crt)
unshare --mount --pid --fork --kill-child bash -euc '
  mount -t proc proc "$0/proc"
  mount --rbind /dev "$0/dev"
  exec chroot "$0" env -i HOME=/root PATH=/usr/sbin:/usr/bin "$@"' \
  "$root" "${kept[@]}" make -C /obscura_jax "$@"
