#!/usr/bin/env bash
# Runs a verb in N processes of this machine, each with a part of the questions: shards.sh N VERB ARGUMENTS...
#
#   examples/launch/shards.sh 4 eval CHECKPOINT --task tags --out results --threads 1
#
# A process that ends with an error or is killed is started again, up to three times: what it did is kept. Of several
# machines that share the folder of --out, each runs its own numbers: SDRPN_FIRST=5 SDRPN_OF=8 for 5 to 8 of 8.
set -uo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "shards.sh: the number of processes is '${1-}'; expected shards.sh N VERB ARGUMENTS..., with N of at least 1" >&2
  exit 2
fi
processes=$1; shift
first=${SDRPN_FIRST:-1} all=${SDRPN_OF:-$processes}

part() {
  for attempt in 1 2 3; do
    "${PYTHON:-python3}" -m sdrpn "$@" && return 0
    status=$?
    [ "$status" -eq 2 ] && return 2  # wrong arguments stay wrong
    echo "part failed ($status), attempt $attempt of 3" >&2
  done
  return "$status"
}

pids=()
for ((number = first; number < first + processes; number++)); do
  part "$@" --shard "$number/$all" &
  pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
exit "$failed"
