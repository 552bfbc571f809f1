#!/usr/bin/env bash
# Run steps on a machine with an NVIDIA GPU and without a network, from a copy of the repository and of what pack.sh made:
#
#     OUT=results tests/gpu/run.sh check speed
#     OUT=results tests/gpu/run.sh train
#
# check   the GPU tests (150 s)
# speed   the GPU rows of docs/performance.md (3 minutes)
# large   SD 1.5 and SDXL at true size beside plain diffusers, and the published job (5 minutes)
# train   scene-sd and scene-clip trained on from their weights, scene-judge from scratch (7 minutes); with
#         OPTIONS=--fresh all from scratch, with OPTIONS="--parts clip" that part alone, with OPTIONS=--measure what lies
#         in $OUT is measured
# flow    emoji-flow trained from scratch, or on from its weights in $OUT (7 minutes); OPTIONS as those of train
# methods learning rules side by side, three seeds each (9 minutes); with OPTIONS="--methods kto student mixed --jobs 6"
#         these alone, of the further ones in tests/gpu/methods.py, six runs at once
#
# A step that fails, or is killed when its time is over, does not stop the next. Each figure is a line of JSON, as is each
# failed step, on standard output and in $OUT/figures.jsonl; weights and a contact sheet go to $OUT too. The exit status
# is 1 if any step failed. Ctrl-C ends the step that runs, and no other begins.
#
# SMALL=1 cuts everything down to seconds on a CPU. PYTHON names another interpreter, PACK another folder than .gpu;
# CHECK_SECONDS, SPEED_SECONDS, LARGE_SECONDS, TRAIN_SECONDS, FLOW_SECONDS and METHODS_SECONDS set other limits; OPTIONS is handed to
# tests/gpu/step.py, for example OPTIONS="--batch 1024 --rate 1e-3".
set -uo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

if [ $# -eq 0 ]; then
    echo "Name the steps to run: check, speed, large, train, flow, methods." >&2
    exit 2
fi
python=${PYTHON:-python3}
pack=${PACK:-.gpu}
out=${OUT:-runs/gpu}
[[ $out = /* || -z ${OUT:-} ]] || out=$here/$out
[[ $pack = /* || -z ${PACK:-} ]] || pack=$here/$pack
mkdir -p "$out" || exit 1

for linked in llm rewards apps configs; do
    if [ ! -e "raftdiff/$linked/" ]; then
        echo "raftdiff/$linked leads nowhere: copy the repository with its symbolic links." >&2
        exit 1
    fi
done

needed="diffusers open_clip ftfy wcwidth pydantic pydantic_core annotated_types typing_inspection typing_extensions
    importlib_metadata beartype"
# shellcheck disable=SC2016
missing='import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1].split() if not find_spec(n)))'
lacking=$("$python" -c "$missing" "$needed") || exit 1
packages=$(mktemp -d)
running=
trap 'rm -rf "$packages"' EXIT
trap '[ -z "$running" ] || { kill "$running"; wait "$running"; } 2>/dev/null; exit 130' INT TERM
if [ -n "$lacking" ]; then
    if ! ls "$pack"/wheels/*.whl >/dev/null 2>&1; then
        echo "This Python lacks $lacking, and $pack/wheels is empty: run tests/gpu/pack.sh where there is a network." >&2
        exit 1
    fi
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
        --target "$packages" "$pack"/wheels/*.whl >&2 || exit 1
fi
export PYTHONPATH="$packages:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

small=()
[ "${SMALL:-0}" = 0 ] || small=(--small)
failed=0
for step in "$@"; do
    case $step in
        check) limit=${CHECK_SECONDS:-150} ;;
        speed) limit=${SPEED_SECONDS:-180} ;;
        large) limit=${LARGE_SECONDS:-300} ;;
        train) limit=${TRAIN_SECONDS:-420} ;;
        flow) limit=${FLOW_SECONDS:-420} ;;
        methods) limit=${METHODS_SECONDS:-540} ;;
        *) limit=unknown ;;
    esac
    began=$SECONDS
    if [ "$limit" = unknown ]; then
        wrong="there is no such step; known: check, speed, large, train, flow, methods"
    elif ! [[ $limit =~ ^[0-9]*\.?[0-9]+$ && $limit =~ [1-9] ]]; then
        wrong="its limit is no number of seconds above 0"
    else
        # In the background, so that a signal to this script ends the step too.
        # shellcheck disable=SC2086
        timeout --kill-after=5 "$limit" "$python" tests/gpu/step.py "$step" "${small[@]}" \
            --seconds "$limit" --out "$out" --pack "$pack" ${OPTIONS:-} </dev/null &
        running=$!
        wait "$running"
        status=$?
        running=
        rm -f "$out"/*.safetensors.part # what a killed step was about to write
        wrong="exit $status after $((SECONDS - began)) s"
        [ "$status" = 0 ] && continue
    fi
    failed=1
    printf '{"step": "%s", "failed": "%s"}\n' "${step//[^[:alnum:]_.-]/?}" "$wrong" | tee -a "$out/figures.jsonl"
done
exit $failed
