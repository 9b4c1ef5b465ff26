#!/usr/bin/env bash
# Does what the README's first command promises: builds, starts the server with the built-in model, and gets the
# page, the health report and a picture from it. Prints how long each took.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --quiet
port=7867
log=$(mktemp)
start=$(date +%s%N)
since() { echo "$(( ($(date +%s%N) - start) / 1000000 )) ms"; }
target/release/aquatint serve --port "$port" 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT

get() { python3 - "$@" <<'PY'
import json, sys, urllib.request
path, body = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
request = urllib.request.Request("http://127.0.0.1:7867" + path, body and body.encode(), {"Content-Type": "application/json"})
sys.stdout.write(urllib.request.urlopen(request, timeout=60).read().decode())
PY
}
for _ in $(seq 100); do
    if get /health >/dev/null 2>&1; then break; fi
    sleep 0.1
done
get /health | grep -q '"status":"healthy"' || { cat "$log" >&2; exit 1; }
echo "healthy after $(since)"
get /generate '{"prompt":"a red apple","aspectRatio":"1:1","config":{"numImages":1}}' |
    python3 -c '
import base64, json, sys
picture = base64.b64decode(json.load(sys.stdin)["images"][0])
assert picture.startswith(b"\x89PNG"), "no PNG"
print("a PNG of", len(picture), "bytes")'
echo "first picture after $(since)"
kill -TERM "$server"
wait "$server"
echo "stopped after $(since)"
