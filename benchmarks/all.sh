#!/usr/bin/env bash
# Measure this machine's CPU against other runtimes and over both passes, all sides in turns, into one results file.
#
#   benchmarks/all.sh docs/results/cpu/NAME.json        # an idle machine: see TIMES below
#   ROUNDS=2 THREADS=1 PARTS=runtimes benchmarks/all.sh out.json
#
# PARTS, some of (default: the first three):
#   runtimes   prefill and decode at 0.4B INT4 against OpenVINO GenAI, if it is installed, and llama.cpp, if
#              LLAMA_CPP_LIBRARIES names a folder of its libraries (llama_library.py)
#   passes     every case of both passes with either library, and what a token reads
#   reference  one box against the reference in PyTorch, which computes everything again (extra `train`)
#   large      prefill and decode at 7B INT4 (30 GB of disk, 12 GB of memory; with LARGE=7b-8, the matrices of 7B in 8
#              layers, 6 GB of either)
# TIMES on two idle cores, estimated from runs of fewer rounds on busy ones: bundles 5 minutes once; for each number of THREADS
# runtimes 5, passes 10 to 20, reference 10 minutes; large 20 once and 20 each. A step that takes longer than LIMIT_S (3600) is
# ended and left out of the results.
# A run that was interrupted goes on where it was: what is measured stays in WORK (default: OUT.work, 4 GB; large 30 GB more)
# until that is removed. The results file is written again after every step.
#
# python benchmarks/cpu_table.py --write then makes the tables of docs/benchmarks.md.
set -euo pipefail
out=${1:?name the results file}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
large=${LARGE:-7b} rounds=${ROUNDS:-5} threads=${THREADS:-"1 2"} parts=${PARTS:-"runtimes passes reference"}
work=${WORK:-$out.work} limit_s=${LIMIT_S:-3600}
for part in $parts; do
  case $part in runtimes | passes | reference | large) ;; *) echo "all.sh: PARTS has no $part" >&2; exit 2 ;; esac
done
mkdir -p "$work" "$(dirname "$out")"

sdrpn() { "$python" -m sdrpn "$@"; }
has() { "$python" -c "import $1" 2>/dev/null; }
say() { echo "all.sh: $(date +%H:%M:%S) $*" >&2; }
rebuilt() { [ -d "$work/$1" ] || { rm -rf "$work/$1.new" && "${@:2}" "$work/$1.new" && mv "$work/$1.new" "$work/$1"; }; }

# One step: into NAME.json, unless that is there; the results so far into the results file.
step() {
  local name=$1
  shift
  if [ -f "$work/$name.json" ]; then
    say "$name is there"
  else
    say "$name"
    if timeout -k 30 "$limit_s" "$@" >"$work/$name.part"; then
      mv "$work/$name.part" "$work/$name.json"
    else
      say "$name ended with $? and is left out"
    fi
  fi
  "$python" "$here/cpu_table.py" --join "$out" "$work"
}

# Args: options, then the folder.
export_int4() { sdrpn export "$work/checkpoint" --precision int4 "${@:1:$#-1}" --out "${@: -1}"; }
say "checkpoint and bundles in $work"
rebuilt checkpoint "$python" "$here/random_checkpoint.py" --size 0.4b
rebuilt b32 export_int4 --block 32 --int8 lm_head
rebuilt b128 export_int4 --block 128 --int8 lm_head
rebuilt b128h4 export_int4 --block 128 --keep rpn,vision                  # the head in 4 bits as well
rebuilt b128rv8 export_int4 --block 128 --int8 lm_head,rpn,vision # RPN and tower in 8 bits as well
for form in b32 b128 b128h4 b128rv8; do
  ls "$work/$form"/optimized/fused-int4-cpu/ort-* >/dev/null 2>&1 || sdrpn optimize "$work/$form" --variant fused-int4-cpu
done

others="ours:$work/b128:fused-int4-cpu:onnxruntime,ours:$work/b128h4:fused-int4-cpu:onnxruntime" sides=(--compare "$work/b32:fused-int4-cpu:standard")
if has openvino; then
  others="$others,ours:$work/b32:fused-int4:openvino,ours:$work/b128:fused-int4:openvino,ours:$work/b128h4:fused-int4:openvino"
  sides+=(--compare "$work/b32:fused-int4:openvino" --compare "$work/b128:fused-int4:openvino"
    --compare "$work/b128rv8:fused-int4:openvino")
fi
if [ -n "${LLAMA_CPP_LIBRARIES:-}" ]; then others="$others,llama-q4_0"; fi # see llama_library.py
if has openvino_genai && has gguf; then others="$others,openvino-q4_0"; fi

run_part() {
  local part=$1 count=$2
  case $part in
  runtimes)
    step "runtimes-$count" "$python" "$here/other_runtimes.py" "$work/b32" --variant fused-int4-cpu --others "$others" \
      --threads "$count" --rounds "$rounds" --gguf "$work/gguf" --json ;;
  passes)
    step "bench-$count" "$python" -m sdrpn bench "$work/b32" --variant fused-int4-cpu "${sides[@]}" \
      --cases plain,no-box,one-box,mask,two-box,second-question --new-tokens 16 --threads "$count" --runs "$rounds" \
      --no-verify --json ;;
  reference)
    if ! has torch; then say "no PyTorch: reference is left out" && return; fi
    step "reference-$count" "$python" -m sdrpn bench "$work/b32" --variant fused-int4-cpu "${sides[@]}" --compare torch \
      --checkpoint "$work/checkpoint" --cases plain,one-box --new-tokens 2 --threads "$count" --runs 2 --no-verify --json ;;
  large)
    if [ ! -d "$work/large-b128" ]; then
      rebuilt large-checkpoint "$python" "$here/random_checkpoint.py" --size "$large"
      rebuilt large-b128 sdrpn export "$work/large-checkpoint" --precision int4 --block 128 --int8 lm_head --out
      rm -rf "$work/large-checkpoint"
    fi
    local sides=standard
    if has openvino; then sides="ours:$work/large-b128:fused-int4:openvino"; fi
    if [ -n "${LLAMA_CPP_LIBRARIES:-}" ]; then sides="$sides,llama-q4_0"; fi
    step "large-$count" "$python" "$here/other_runtimes.py" "$work/large-b128" --variant fused-int4-cpu --others "$sides" \
      --threads "$count" --rounds 2 --gguf "$work/large-gguf" --json ;;
  esac
}
for part in $parts; do
  for count in $threads; do run_part "$part" "$count"; done
done
say "results in $out; what was made for them stays in $work until you remove it"
