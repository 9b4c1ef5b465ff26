#!/usr/bin/env bash
# schemathesis against /openapi.json: no 500, and no status that the document does not name.
# PHASES=coverage,fuzzing also tries every constraint of every field, which takes minutes.
set -euo pipefail
export SCHEMATHESIS_HOOKS=tests/clients/schemathesis_hooks.py
exec .clients/venv/bin/schemathesis run "$1/openapi.json" --url "$1" --phases "${PHASES:-fuzzing}" \
    --checks no_internal_error,status_code_conformance --max-examples "${EXAMPLES:-20}" --request-timeout 120 \
    --generation-database none --no-color
