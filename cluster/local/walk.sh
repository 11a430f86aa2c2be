#!/usr/bin/env bash
# A walk from nothing to a finished run and back down, on one machine: a Ray cluster of two nodes with a token, an
# MLflow server, and a run that is submitted, watched, stopped, resumed and read. Every command is one that an
# operator types; tests/e2e/test_walk.py runs this file as it is.
#
#   bash cluster/local/walk.sh CONFIG FOLDER [a.b=c ...]
#
# CONFIG is a configuration; everything that the walk writes is in FOLDER. Ray's nodes listen on all interfaces of
# a cluster of more than one; the token keeps others out, and a firewall does it better.
set -euo pipefail
config=$(realpath "$1")
mkdir -p "$2"
folder=$(realpath "$2")
overrides=("${@:3}" "run.dir=$folder/runs" run.name=walk tracking.mlflow_uri=http://127.0.0.1:5000)

say() { printf '\n== %s\n' "$*"; }
# wait_for SECONDS COMMAND...: try it every second, and give up with what it was.
wait_for() {
  local left=$1
  shift
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || { echo "gave up waiting for: $*" >&2; exit 1; }
    sleep 1
  done
}
session=$(mktemp -d /tmp/ray-XXXXXX) # a short path: there are sockets in it
trap 'kill -9 $(jobs -p) 2>/dev/null || true; sleep 1; rm -rf "$session"' EXIT

say "a token for the cluster, which every command below finds in the environment"
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.2:8265
export RAY_raylet_start_wait_time_s=120 # a busy machine is slow to start a node

say "an MLflow server, on loopback"
mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
  --backend-store-uri "sqlite:///$folder/mlflow.db" --artifacts-destination "$folder/artifacts" \
  >"$folder/mlflow.log" 2>&1 &

say "two Ray nodes"
ray start --head --block --node-ip-address 127.0.0.2 --port 6379 --dashboard-host 127.0.0.2 \
  --temp-dir "$session" --num-cpus 3 --object-store-memory 200000000 >"$folder/head.log" 2>&1 &
wait_for 120 perm-ray status
ray start --block --address 127.0.0.2:6379 --node-ip-address 127.0.0.3 \
  --num-cpus 3 --object-store-memory 200000000 >"$folder/worker.log" 2>&1 &
wait_for 120 curl --silent --fail http://127.0.0.1:5000/health

say "look before the start"
look() {
  perm-ray doctor --address "$RAY_API_SERVER_ADDRESS" --config "$config" "${overrides[@]}" >"$folder/doctor.txt"
  grep -q "2 nodes" "$folder/doctor.txt"
}
wait_for 60 look
cat "$folder/doctor.txt"

say "submit"
perm-ray submit --config "$config" "${overrides[@]}" run.steps=1000 checkpoint.every=1

say "follow it until its first step is done"
wait_for 600 test -s "$folder/runs/walk/metrics.jsonl"
perm-ray status walk
perm-ray logs walk

say "stop: it writes a checkpoint first"
perm-ray stop walk

say "resume, for one more step, and follow it to its end"
steps=$(($(wc -l <"$folder/runs/walk/metrics.jsonl") + 1))
perm-ray submit --config "$config" "${overrides[@]}" --resume "$folder/runs/walk" --follow \
  "run.steps=$steps" checkpoint.every=1

say "read it"
perm-ray report "$folder/runs/walk"
perm-ray status

say "and back down"
