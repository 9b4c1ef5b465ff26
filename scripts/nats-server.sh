#!/usr/bin/env bash
# Prints the path of a nats-server of at least the version that the shared queue needs: an installed one, else the one in
# .nats, which this fetches from Debian where it is missing. The package of a newer suite holds one static binary, which
# runs on older ones too. The mirror is the one that apt is set up with here.
set -euo pipefail
cd "$(dirname "$0")/.."

needed=2.10.23
suites=(sid trixie)

is_new_enough() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^nats-server: v//p') || return 1
    [ -n "$version" ] && [ "$(printf '%s\n%s\n' "$needed" "$version" | sort -V | head -n 1)" = "$needed" ]
}

for found in "$(command -v nats-server || true)" "$PWD/.nats/nats-server"; do
    if [ -n "$found" ] && [ -x "$found" ] && is_new_enough "$found"; then
        echo "$found"
        exit 0
    fi
done

fail() {
    echo "scripts/nats-server.sh: $1: install nats-server $needed or newer" >&2
    exit 1
}
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "this machine has no apt"
# Of apt's own lists, the first site is the distribution's.
site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | head -n 1)
[ -n "$site" ] || fail "apt has no mirror"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
for suite in "${suites[@]}"; do
    echo "deb [signed-by=$keyring] $site $suite main"
done >"$folder/sources.list"
apt=(-o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$folder/lists"
    -o "Dir::Cache=$folder/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none
    -o "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false")
apt-get "${apt[@]}" --quiet --quiet update >&2 || fail "the package lists could not be read"
(cd "$folder" && apt-get "${apt[@]}" --quiet --quiet download nats-server >&2) || fail "the package could not be fetched"
dpkg-deb --extract "$folder"/nats-server_*.deb "$folder/package"
mkdir -p .nats
install "$(find "$folder/package" -name nats-server -type f -perm -u+x | head -n 1)" .nats/nats-server
is_new_enough "$PWD/.nats/nats-server" || fail "the package of Debian is too old, or does not run here"
echo "$PWD/.nats/nats-server"
