#!/usr/bin/env bash
# Real clients of other servers' APIs against this one, over loopback with the built-in model. Installs them from PyPI
# and npm into .clients; a client that cannot be installed is a failure. Needs Python 3.10 or newer and Node 20.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p .clients
if ! cmp -s tests/clients/package.json .clients/package.json || [ ! -d .clients/node_modules ]; then
    cp tests/clients/package.json .clients/
    npm install --prefix .clients --no-audit --no-fund --loglevel error
fi
[ -x .clients/venv/bin/python ] || python3 -m venv .clients/venv
.clients/venv/bin/pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt

cargo build --quiet
log=$(mktemp)
"${CARGO_TARGET_DIR:-target}/debug/aquatint" serve --port 0 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -f "$log"' EXIT
for _ in $(seq 600); do
    url=$(sed -n 's/.*listening on \(http:[^ "]*\).*/\1/p' "$log" | head -n 1)
    [ -n "$url" ] && break
    kill -0 "$server" || { cat "$log"; exit 1; }
    sleep 0.1
done

failed=0
run() {
    printf '%-28s' "$1"
    if timeout 600 "${@:2}" "$url"; then echo passed; else echo FAILED; failed=1; fi
}
python=(.clients/venv/bin/python -W ignore::DeprecationWarning)
export NODE_PATH="$PWD/.clients/node_modules" HF_HUB_DISABLE_TELEMETRY=1
run "openai (Python)" "${python[@]}" tests/clients/openai_images.py
run "huggingface_hub" "${python[@]}" tests/clients/hf_hub.py
run "webuiapi" "${python[@]}" tests/clients/webui.py
run "openai (npm)" node tests/clients/openai.cjs
run "@huggingface/inference" node tests/clients/hf_inference.cjs
run "a1111-webui-api" node tests/clients/a1111.cjs
[ "$failed" = 0 ] || { tail -n 20 "$log"; exit 1; }
