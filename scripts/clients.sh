#!/usr/bin/env bash
# Real clients of other servers' APIs against this one, over loopback with the built-in model. Installs them from PyPI
# and npm into .clients; a client that cannot be installed is a failure. Needs Python 3.10 or newer and Node 20 or newer.
# EXAMPLES is how many requests schemathesis makes up for each operation.
set -euo pipefail
cd "$(dirname "$0")/.."

need() {
    command -v "$1" >/dev/null || { echo "scripts/clients.sh: there is no $1; $2 is needed" >&2; exit 1; }
}
need node "Node 20 or newer (the npm clients)"
need npm "npm (the npm clients)"
need python3 "Python 3.10 or newer (the PyPI clients)"
node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' ||
    { echo "scripts/clients.sh: Node 20 or newer is needed, this is $(node --version)" >&2; exit 1; }
python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    { echo "scripts/clients.sh: Python 3.10 or newer with venv is needed, this is $(python3 --version)" >&2; exit 1; }

# What is installed is what the lists ask for: each list is copied beside its packages once all of them are there.
mkdir -p .clients
if ! cmp -s tests/clients/package.json .clients/npm-made-from; then
    rm -rf .clients/node_modules .clients/package-lock.json
    cp tests/clients/package.json .clients/package.json
    npm install --prefix .clients --no-audit --no-fund --loglevel error
    cp tests/clients/package.json .clients/npm-made-from
fi
if ! cmp -s tests/clients/requirements.txt .clients/pip-made-from; then
    python3 -m venv --clear .clients/venv
    .clients/venv/bin/pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
    cp tests/clients/requirements.txt .clients/pip-made-from
fi

cargo build --workspace --quiet --bin aquatint
log=$(mktemp)
"${CARGO_TARGET_DIR:-target}/debug/aquatint" serve --port 0 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -f "$log"' EXIT
url=
for _ in $(seq 600); do
    url=$(sed -n 's/.*listening on \(http:[^ "]*\).*/\1/p' "$log" | head -n 1)
    [ -n "$url" ] && break
    kill -0 "$server" || { cat "$log"; exit 1; }
    sleep 0.1
done
[ -n "$url" ] || { echo "scripts/clients.sh: the server does not listen" >&2; cat "$log"; exit 1; }

failed=0
run() {
    printf '%-28s' "$1"
    local begun=$SECONDS
    if timeout 600 "${@:2}" "$url"; then echo "passed ($((SECONDS - begun)) s)"; else echo FAILED; failed=1; fi
}
python=(.clients/venv/bin/python -W ignore::DeprecationWarning)
export NODE_PATH="$PWD/.clients/node_modules" HF_HUB_DISABLE_TELEMETRY=1
run "openai (Python)" "${python[@]}" tests/clients/openai_images.py
run "huggingface_hub" "${python[@]}" tests/clients/hf_hub.py
run "webuiapi" "${python[@]}" tests/clients/webui.py
run "openai (npm)" node tests/clients/openai.cjs
run "@huggingface/inference" node tests/clients/hf_inference.cjs
run "a1111-webui-api" node tests/clients/a1111.cjs
export EXAMPLES=${EXAMPLES:-5}
before=$failed
run "schemathesis" tests/clients/openapi.sh
verdict=$([ "$failed" = "$before" ] && echo yes || echo NO)
row="schemathesis against /openapi.json, at most $EXAMPLES examples a phase and operation"
[ -z "${AQUATINT_SCOREBOARD:-}" ] || echo "SCOREBOARD|14|$row|0 server errors, 0 undocumented statuses|passed: $verdict|$verdict"
[ "$failed" = 0 ] || { tail -n 20 "$log"; exit 1; }
