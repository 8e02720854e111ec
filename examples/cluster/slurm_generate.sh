#!/bin/bash
# Videos of many prompts, shared among the tasks of a Slurm array:
#   sbatch --array=0-3 --gres=gpu:1 --cpus-per-task=8 slurm_generate.sh MODEL prompts.txt videos 4 --plan plan.safetensors -W 832 -H 480
# Of four tasks, task i makes every fourth video, from i on: videos/task_000i/v_0000.mp4 and so on. A task that is killed, or run again, by --requeue or
# by its index alone (--array=2), goes on where it was. Everything lies in folders that all machines share.
#SBATCH --job-name=calibatt-generate
#SBATCH --requeue
set -euo pipefail
model=${1:-} prompts=${2:-} folder=${3:-} tasks=${4:-} task=$SLURM_ARRAY_TASK_ID
# How many tasks there are is said here: Slurm counts those of this array, which are fewer where one of them is run again.
if ! [[ $tasks =~ ^[1-9][0-9]*$ && $task -lt $tasks ]]; then
  echo "slurm_generate.sh: task $task of \"$tasks\" tasks; give MODEL PROMPTS FOLDER TASKS, and an --array within 0-(TASKS-1)" >&2
  exit 2
fi
shift 4
out=$folder/$(printf 'task_%04d' "$task")
mkdir -p "$out"
grep -vE '^[[:space:]]*(#|$)' "$prompts" | awk -v share="$task" -v tasks="$tasks" 'NR % tasks == (share + 1) % tasks' >"$out/prompts.txt"
[ -s "$out/prompts.txt" ] || exit 0 # more tasks than prompts
exec "${CALIBATT:-calibatt}" generate -m "$model" --prompts "$out/prompts.txt" -o "$out/v.mp4" --threads "${SLURM_CPUS_PER_TASK:-1}" "$@"
