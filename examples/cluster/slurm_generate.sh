#!/bin/bash
# Videos of many prompts, shared among the tasks of a Slurm array:
#   sbatch --array=0-3 --gres=gpu:1 --cpus-per-task=8 slurm_generate.sh MODEL prompts.txt videos --plan plan.safetensors -W 832 -H 480
# Task i makes every n-th video, from i on: videos/task_000i/v_0000.mp4 and so on. A task that is killed, or run again by --requeue, goes on where it
# was. Everything lies in folders that all machines share.
#SBATCH --job-name=calibatt-generate
#SBATCH --requeue
set -euo pipefail
model=$1 prompts=$2 folder=$3
shift 3
task=$SLURM_ARRAY_TASK_ID first=$SLURM_ARRAY_TASK_MIN tasks=$SLURM_ARRAY_TASK_COUNT
out=$folder/$(printf 'task_%04d' "$task")
mkdir -p "$out"
grep -vE '^[[:space:]]*(#|$)' "$prompts" | awk -v share=$((task - first)) -v tasks="$tasks" 'NR % tasks == (share + 1) % tasks' >"$out/prompts.txt"
[ -s "$out/prompts.txt" ] || exit 0 # more tasks than prompts
exec "${CALIBATT:-calibatt}" generate -m "$model" --prompts "$out/prompts.txt" -o "$out/v.mp4" --threads "${SLURM_CPUS_PER_TASK:-1}" "$@"
