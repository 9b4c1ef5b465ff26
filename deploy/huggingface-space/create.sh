#!/usr/bin/env bash
# From nothing to a running Docker Space, with the commands of Hugging Face's own client. README.md beside this says more.
#   deploy/huggingface-space/create.sh YOU/NAME [--hardware T] [--image IMAGE] [--model ID] [--volume V]
#       [--private] [--sleep S] [--dry-run]
set -euo pipefail
# Secrets pass through a file of this script's.
umask 077
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
endpoint=${HF_ENDPOINT:-https://huggingface.co}

fail() { echo "create.sh: $*" >&2; exit 2; }

hardware='' image='' model='' sleep_s=900 dry_run='' space='' visibility=--public
volumes=()
while [ $# -gt 0 ]; do
    case "$1" in
        --hardware) hardware=${2:?--hardware needs a name}; shift ;;
        --image) image=${2:?--image needs a name}; shift ;;
        --model) model=${2:?--model needs an id}; shift ;;
        --sleep) sleep_s=${2:?--sleep needs seconds}; shift ;;
        --volume) volumes+=(--volume "${2:?--volume needs hf://SOURCE:/PATH}"); shift ;;
        --private) visibility=--private ;;
        --dry-run) dry_run=1 ;;
        -*) fail "unknown option $1" ;;
        *) [ -z "$space" ] || fail "one Space at a time"; space=$1 ;;
    esac
    shift
done
[[ $space == */* ]] || fail "usage: create.sh YOU/NAME [--hardware a10g-small]"

# Each kind of machine has its GPU family and its settings; one without a GPU needs no CUDA in the program.
features=cuda
case "$hardware" in
    '' | cpu-*) caps=80 features=demo settings='' ;;
    t4-*) caps=75 settings=$here/t4.env ;;
    a10g-* | l4* | a100*) caps=80 settings=$here/a10g.env ;;
    *) fail "no settings for $hardware: t4-*, a10g-*, l4*, a100* and cpu-* are known" ;;
esac

# The client, in an environment of its own unless there is one that knows what is asked of it here.
if ! hf repos create --help 2>/dev/null | grep -e --env-file >/dev/null; then
    python3 -m venv "$root/.hf"
    "$root/.hf/bin/pip" install --quiet --disable-pip-version-check 'huggingface_hub==2.4.0'
    PATH=$root/.hf/bin:$PATH
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
staged=$work/space
mkdir "$staged"
cp "$here/space.md" "$staged/README.md"
if [ -n "$image" ]; then
    printf 'FROM %s\n' "$image" >"$staged/Dockerfile"
else
    # The Space builds what this checkout has committed, for its own GPU.
    mapfile -t sources < <(awk '$1 == "COPY" && !/--from=/ { for (i = 2; i < NF; i++) if ($i !~ /^--/) print $i }' \
        "$root/Dockerfile.cuda")
    git -C "$root" archive HEAD .dockerignore "${sources[@]}" | tar -x -C "$staged"
    rm -rf "$staged/models/tests" "$staged/models/demo/training"
    sed "s/^ARG CAPS=.*/ARG CAPS=$caps/; s/^ARG FEATURES=.*/ARG FEATURES=$features/" "$root/Dockerfile.cuda" \
        >"$staged/Dockerfile"
fi
: >"$work/variables"
if [ -n "$settings" ]; then
    grep -E '^[A-Z]' "$settings" >"$work/variables"
fi
if [ -n "$model" ]; then
    sed -i '/^SD_MODEL_ID=/d' "$work/variables"
    echo "SD_MODEL_ID=$model" >>"$work/variables"
fi

create=(hf repos create "$space" --repo-type space --space-sdk docker --exist-ok "$visibility" "${volumes[@]}" --env-file "$work/variables")
if [ -n "$hardware" ]; then
    create+=(--flavor "$hardware" --sleep-time "$sleep_s")
fi
# The token that uploads may write; the Space gets one of its own, which should only read.
{
    [ -z "${SPACE_HF_TOKEN:-}" ] || echo "HF_TOKEN=$SPACE_HF_TOKEN"
    [ -z "${AQUATINT_API_KEYS:-}" ] || echo "AQUATINT_API_KEYS=$AQUATINT_API_KEYS"
} >"$work/secrets"
[ ! -s "$work/secrets" ] || create+=(--secrets-file "$work/secrets")
upload=(hf upload "$space" "$staged" . --repo-type space --commit-message "Aquatint")
address=$(tr '[:upper:]/_.' '[:lower:]---' <<<"$space")
address=https://$address.hf.space

if [ -n "$dry_run" ]; then
    echo "variables:"; sed 's/^/  /' "$work/variables"
    echo "files:"; (cd "$staged" && find . -type f | sort | sed 's/^/  /')
    printf '%q ' "${create[@]}"; echo
    printf '%q ' "${upload[@]}"; echo
    exit 0
fi

hf auth whoami >/dev/null 2>&1 || hf auth login
"${create[@]}"
"${upload[@]}"
echo "building; the log: hf spaces logs $space --build --follow"
hf spaces wait "$space" --timeout 2h
if [ "$endpoint" = https://huggingface.co ] && [ "$visibility" = --public ]; then
    authorization=()
    [ -z "${AQUATINT_API_KEYS:-}" ] || authorization=(-H "authorization: Bearer ${AQUATINT_API_KEYS%%,*}")
    curl -fsS --max-time 900 --retry 5 "$address/generate" -H 'content-type: application/json' "${authorization[@]}" \
        -d '{"prompt": "a red apple", "aspectRatio": "1:1"}' -o "$root/space-reply.json"
    echo "the first reply is in space-reply.json"
fi
echo "$address"
