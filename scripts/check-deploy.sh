#!/usr/bin/env bash
# Checks Dockerfile.cuda, deploy/ and docs/ without a container engine, a cluster or a GPU: with the tools that read such
# files, and against the tree. A tool that is missing is a failure. Needs Python 3.10, kubectl, systemd-analyze, and the
# first time PyPI and, for promtool, Debian's apt. `--build` also compiles the tree as the image does, without CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/.deploy-tools

need() {
    command -v "$1" >/dev/null || { echo "scripts/check-deploy.sh: there is no $1; $2 is needed" >&2; exit 1; }
}
need python3 "Python 3.10 or newer"
need kubectl "kubectl, for its kustomize"
need systemd-analyze "systemd"
need cargo "Rust"

mkdir -p "$tools"
if ! cmp -s scripts/deploy_checks/requirements.txt "$tools/made-from"; then
    python3 -m venv --clear "$tools/venv"
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check -r scripts/deploy_checks/requirements.txt
    cp scripts/deploy_checks/requirements.txt "$tools/made-from"
fi
PATH=$tools/venv/bin:$tools/bin:$PATH
if ! command -v promtool >/dev/null; then
    need apt-get "promtool, or apt to fetch it from Debian's package prometheus,"
    fetched=$(mktemp -d)
    (cd "$fetched" && { apt-get download prometheus || { apt-get update -qq && apt-get download prometheus; }; } >/dev/null 2>&1) ||
        { echo "scripts/check-deploy.sh: there is no promtool, and Debian's package prometheus cannot be had" >&2; exit 1; }
    dpkg-deb --fsys-tarfile "$fetched"/prometheus_*.deb | tar -x -C "$fetched" ./usr/bin/promtool
    install -D "$fetched/usr/bin/promtool" "$tools/bin/promtool"
    rm -rf "$fetched"
fi
PATH=$PATH exec python3 scripts/deploy_checks "$@"
