#!/usr/bin/env bash
# From a checkpoint to engines that can be shipped: bundle, engines for every target, parity, report, provenance, digests.
#
#   bash examples/ci/build-engines.sh CHECKPOINT OUT TARGET...
#
# OUT/release         what is shipped: engines with their manifests, token embedding, tokenizer; `sdrpn ask` takes it
# OUT/bundle          the whole bundle, with graphs and weights: for devices that build for themselves, and the next run
# OUT/engines.md, OUT/engines.html   targets and graphs: size, seconds, memory, gates
# OUT/targets.json    what became of every target: built, or which device it needs
# OUT/provenance.json what went in and what came out (in-toto statement, SLSA provenance; unsigned)
# OUT/SHA256SUMS      digests of all of it but the bundle: sha256sum -c SHA256SUMS
#
# Run it again with the same OUT, or with OUT/bundle out of a cache, and engines of the same inputs are kept.
#
# Settings, as environment variables:
#   CHECKPOINT_OPTIONS  what `sdrpn export` and `sdrpn verify` need beside CHECKPOINT: --rpn FILE, --vision-tower DIR,
#                 --base DIR (paths without spaces)
#   EXPORT_OPTIONS      other options of every `sdrpn export`, e.g. --resume
#   EXPORT_OPTIONS_INT4, _INT8, _FP16, ...   those of one precision, e.g. --block 128 --keep lm_head,rpn
#   PRECISIONS    of the graphs (default: fp16); each target takes the best of its own that is there
#   MAX_CONTEXT   rows of the caches (default: as much as the checkpoint has)
#   MAX_BATCH     requests in a decode step (default: 1)
#   JOBS          builds at once; each needs 0.4 GB and 3.3 times the weights of its graph (default: 1)
#   TIMING_CACHE  file in which TensorRT keeps its measurements between runs; TensorRT-RTX measures nothing
#   VERIFY        0: build only; parity needs the extra [train]
#   SDRPN, PYTHON the programs (default: sdrpn, python3)
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 CHECKPOINT OUT TARGET...   (sdrpn targets shows them)" >&2
    exit 2
fi
checkpoint=$1 out=$2
shift 2
targets=("$@")
bundle=$out/bundle
read -ra beside <<<"${CHECKPOINT_OPTIONS:-}"
read -ra export_options <<<"${EXPORT_OPTIONS:-}"
read -ra sdrpn <<<"${SDRPN:-sdrpn}"
read -ra python <<<"${PYTHON:-python3}"
started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { echo "== $*"; }

# One entry of JSON from standard input: ask '["rtx-4090"]["dialect"]'
ask() { "${python[@]}" -c "import json, sys; print(json.load(sys.stdin)$1)"; }

mkdir -p "$out"
known=$("${sdrpn[@]}" targets --json)
dialects=()
for target in "${targets[@]}"; do
    case $target in
    *.toml) dialect=$(sed -n 's/^dialect *= *"\(.*\)".*/\1/p' "$target") ;;
    *) dialect=$(ask "['targets']['$target']['dialect']" <<<"$known" 2>/dev/null) || {
        "${sdrpn[@]}" build "$checkpoint" --target "$target" --dry-run # says what is known instead
        exit 2
    } ;;
    esac
    [[ " ${dialects[*]} " == *" $dialect "* ]] || dialects+=("$dialect")
done

for dialect in "${dialects[@]}"; do
    for precision in ${PRECISIONS:-fp16}; do
        say "export: $dialect, $precision"
        own=EXPORT_OPTIONS_${precision^^}
        read -ra own_options <<<"${!own:-}"
        "${sdrpn[@]}" export "$checkpoint" "${beside[@]}" --out "$bundle" --dialect "$dialect" \
            --precision "$precision" ${MAX_CONTEXT:+--max-context "$MAX_CONTEXT"} "${export_options[@]}" "${own_options[@]}"
    done
done

built=() results=() variants=() verified=()
for target in "${targets[@]}"; do
    name=$(basename "$target" .toml)
    options=(--target "$target" --max-batch "${MAX_BATCH:-1}" --jobs "${JOBS:-1}" ${MAX_CONTEXT:+--max-context "$MAX_CONTEXT"})
    plan=$("${sdrpn[@]}" build "$bundle" "${options[@]}" --dry-run --json)
    obstacle=$(ask "['obstacle'] or ''" <<<"$plan")
    variant=$(ask "['variant']" <<<"$plan")
    # Targets that take the same graphs are verified together; also graphs for a device that has no PyTorch.
    if [[ " ${variants[*]} " != *" $variant "* ]]; then
        variants+=("$variant")
        verified+=("$target")
    fi
    if [ -n "$obstacle" ]; then
        say "$name needs the device: $obstacle"
        say "  there: sdrpn build bundle --target $name"
        results+=("$name" "$obstacle")
        continue
    fi
    if [ -n "${TIMING_CACHE:-}" ] && ask "['library']" <<<"$plan" | grep -q '^tensorrt '; then
        options+=(--timing-cache "$TIMING_CACHE")
    fi
    say "build: $name"
    "${sdrpn[@]}" build "$bundle" "${options[@]}"
    built+=("$name")
    results+=("$name" built)
done
"${python[@]}" -c '
import json, sys
names = sys.argv[1:]
print(json.dumps(dict(zip(names[::2], names[1::2])), indent=1))
' "${results[@]}" >"$out/targets.json"

failed=0
for index in "${!verified[@]}"; do
    [ "${VERIFY:-1}" = 0 ] && break
    say "verify: ${variants[index]}"
    "${sdrpn[@]}" verify "$bundle" --target "${verified[index]}" --checkpoint "$checkpoint" "${beside[@]}" || failed=1
done

if [ ${#built[@]} -gt 0 ]; then
    say "report"
    "${sdrpn[@]}" inspect "$bundle" --engines --asked "$out/targets.json" --report "$out/engines.md" >/dev/null
    "${sdrpn[@]}" inspect "$bundle" --engines --asked "$out/targets.json" --report "$out/engines.html"
fi
say "release, provenance, digests"
"${python[@]}" "$here/provenance.py" "$bundle" --started "$started" >"$out/provenance.json"
rm -rf "$out/release"
"${python[@]}" -c 'import json, sys; print(*(one["name"] for one in json.load(sys.stdin)["subject"]), sep="\n")' \
    <"$out/provenance.json" | while read -r file; do
    mkdir -p "$out/release/$(dirname "$file")"
    # Without a second copy of the bytes where the file system can.
    ln "$bundle/$file" "$out/release/$file" 2>/dev/null || cp "$bundle/$file" "$out/release/$file"
done
(cd "$out" && find . -path ./bundle -prune -o -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS)
if [ "$failed" = 1 ]; then
    echo "parity is below a gate: do not ship these engines" >&2
    exit 1
fi
say "done: $out"
