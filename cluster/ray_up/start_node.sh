#!/usr/bin/env bash
# Start Ray on this machine as what it is for; `ray up` runs it on each (local.yaml). Its address is looked up here:
# `ray up` knows one kind of machine only, where there is no cloud to make them.
set -euo pipefail

# address, CPUs, GPUs, resources. The first is the head, where no actor with work to do is placed.
machines='
10.0.0.10 0 0 {}
10.0.0.11 16 2 {"rollout": 2}
10.0.0.12 32 4 {"resonation": 1, "expression": 1, "reception": 1, "bystander": 1}
10.0.0.13 32 4 {"trainer": 4}
'

storage=/mnt/perm_ray # runs and models, mounted on every machine
if [ ! -d "$storage/runs" ]; then
    echo "start_node.sh expects storage that all machines share at $storage, with a folder runs, found none on $(hostname)." >&2
    exit 2
fi
export PATH=$HOME/perm_ray_venv/bin:$PATH
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token
export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1
export HF_HOME=$storage/models/huggingface PERM_RAY_CACHE=$storage/models/builtin

own=" $(hostname -I) "
options=()
while read -r address cpus gpus resources; do
    if [ -n "$address" ] && [ "${own#* "$address" }" != "$own" ]; then
        options=(--num-cpus="$cpus" --num-gpus="$gpus" --resources="$resources" --node-ip-address="$address")
        break
    fi
done <<< "$machines"
if [ "${#options[@]}" -eq 0 ]; then
    echo "start_node.sh expects this machine in its list, found none of${own}there: add it, and to local.yaml." >&2
    exit 2
fi
if [ "${1:-}" = head ]; then
    # The dashboard, through which runs are submitted, is for this machine only: `ray dashboard` forwards it.
    options+=(--head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config="$HOME/ray_bootstrap_config.yaml")
else
    options+=(--address="$RAY_HEAD_IP:6379")
fi
ulimit -n 65536 || true
exec ray start "${options[@]}"
