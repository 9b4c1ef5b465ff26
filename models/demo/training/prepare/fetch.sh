#!/usr/bin/env bash
# Fetches the packages of emoji into npm/ here and makes captions.jsonl and pictures.tar of them. Needs npm, and Python
# with numpy, pillow and resvg_py.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p npm
for package in @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/fluent-emoji@1.2.7 \
    @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fxemoji@1.2.2 @lobehub/fluent-emoji-3d@1.1.0 \
    emojibase-data@17.0.0 emojilib@4.0.3; do
    name=${package#@} name=${name//[\/@]/-}
    [ -d "npm/$name" ] && continue
    (cd npm && npm pack --silent "$package" >/dev/null && mkdir "$name.part" && tar xzf "$name.tgz" -C "$name.part" --strip-components 1)
    mv "npm/$name.part" "npm/$name"
    rm "npm/$name.tgz"
done
"${PYTHON:-python3}" render.py
