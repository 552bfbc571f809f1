#!/usr/bin/env bash
# Fill .gpu/ with what a GPU machine without a network lacks, to be copied there with the repository:
#
#     tests/gpu/pack.sh
#
# wheels/ holds the packages that run.sh installs there, for Python 3.12 on 64-bit Linux; sheet.npz holds the art that
# scene-sd learns from. The machine is taken to have torch, torchvision, transformers, peft, accelerate, timm, pytest
# and what those bring.
#
# PYTHON names another interpreter, PACK another folder, CACHE another place for the art's packages (115 MB, kept).
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-.venv/bin/python}
pack=${PACK:-.gpu}
cache=${CACHE:-build/embedded}
[[ $pack = /* || -z ${PACK:-} ]] || pack=$here/$pack
[[ $cache = /* || -z ${CACHE:-} ]] || cache=$here/$cache
most=$((36 * 1024 * 1024))
wheels=(diffusers open_clip_torch ftfy wcwidth pydantic pydantic_core annotated-types typing-inspection
    typing-extensions importlib_metadata lazy-importer beartype)

mkdir -p "$pack"
scratch=$(mktemp -d)
fresh=$(mktemp -d "$pack/fresh.XXXXXX") # an older pack stays until a whole one is there
trap 'rm -rf "$scratch" "$fresh"' EXIT
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --constraint constraints.txt \
    --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --dest "$fresh/wheels" "${wheels[@]}"

if [ ! -f "$cache/sheet.npz" ]; then # it takes a renderer of SVG to make it
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt \
        --target "$scratch" resvg-py
fi
PYTHONPATH="$scratch:$PWD" "$python" -c \
    'import sys; from pathlib import Path; from raftdiff.embedded.scenes.art import art_sheet; art_sheet(Path(sys.argv[1]))' \
    "$cache"
bytes=$(cat "$fresh"/wheels/* "$cache/sheet.npz" | wc -c)
if [ "$bytes" -gt "$most" ]; then
    echo "The new pack holds $bytes bytes, more than the $most (36 MiB) that it may." >&2
    exit 1
fi
rm -rf "$pack/wheels"
mv "$fresh/wheels" "$pack/wheels"
cp "$cache/sheet.npz" "$pack/sheet.npz"
echo "$pack: ${#wheels[@]} wheels and the art, $bytes bytes"
