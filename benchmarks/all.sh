#!/usr/bin/env bash
# Measure this machine's CPU against other runtimes and over both passes, all sides in turns, into one results file.
#
#   benchmarks/all.sh docs/results/cpu/NAME.json        # an idle machine, some twenty minutes on two cores
#   ROUNDS=2 THREADS="1" WORK=/tmp/bench benchmarks/all.sh out.json
#
# python benchmarks/cpu_table.py --write then makes the tables of docs/benchmarks.md.
# WORK keeps the checkpoint, the bundles and the GGUF files for the next run (2.5 GB).
set -euo pipefail
out=${1:?name the results file}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
rounds=${ROUNDS:-5} threads=${THREADS:-"1 2"}
work=${WORK:-$(mktemp -d)}
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work" "$(dirname "$out")"

sdrpn() { "$python" -m sdrpn "$@"; }
has() { "$python" -c "import $1" 2>/dev/null; }

[ -d "$work/checkpoint" ] || "$python" "$here/random_checkpoint.py" "$work/checkpoint" --size 0.4b
for block in 32 128; do
  [ -d "$work/b$block" ] || sdrpn export "$work/checkpoint" --out "$work/b$block" --precision int4 --block "$block" --int8 lm_head
done

others= compare=()
add() { others="${others:+$others,}$1"; }
if has openvino; then
  add "ours:$work/b32:fused-int4:openvino"
  add "ours:$work/b128:fused-int4-cpu:onnxruntime"
  add "ours:$work/b128:fused-int4:openvino"
  compare=(--compare "$work/b32:fused-int4:openvino")
fi
if has llama_cpp; then add llama-q4_0; fi
if has openvino_genai && has gguf; then add openvino-q4_0; fi

parts=()
for count in $threads; do
  "$python" "$here/other_runtimes.py" "$work/b32" --variant fused-int4-cpu --others "$others" --threads "$count" \
    --rounds "$rounds" --gguf "$work/gguf" --json >"$work/runtimes-$count.json"
  sdrpn bench "$work/b32" --variant fused-int4-cpu "${compare[@]}" --cases plain,no-box,one-box --new-tokens 16 \
    --threads "$count" --runs "$rounds" --no-verify --json >"$work/bench-$count.json"
  parts+=("$count=$work/runtimes-$count.json,$work/bench-$count.json")
done
"$python" "$here/cpu_table.py" --join "$out" "${parts[@]}"
