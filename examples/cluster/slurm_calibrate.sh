#!/bin/bash
# One calibration, shared among the tasks of a Slurm array; then one more job makes the plan:
#   job=$(sbatch --parsable --array=0-3 --gres=gpu:1 --cpus-per-task=8 slurm_calibrate.sh measure MODEL prompts.txt plan.safetensors 4 -W 832 -H 480)
#   sbatch --dependency=afterok:$job --gres=gpu:1 --cpus-per-task=8 slurm_calibrate.sh plan MODEL prompts.txt plan.safetensors 4 -W 832 -H 480 --density 0.3
# Task i measures four prompts, from 4·i on, into plan.safetensors.parts; there are as many tasks as it takes. Give each at least three. A task that is
# killed, or run again by --requeue, goes on after its last finished prompt. Everything lies in folders that all machines share.
#SBATCH --job-name=calibatt-calibrate
#SBATCH --requeue
set -euo pipefail
what=$1 model=$2 prompts=$3 plan=$4 length=$5
shift 5
program=${CALIBATT:-calibatt}
calibrate=("$program" calibrate -m "$model" --prompts "$prompts" --threads "${SLURM_CPUS_PER_TASK:-1}" "$@")
number=$(grep -cvE '^[[:space:]]*(#|$)' "$prompts")
case $what in
measure)
  first=$((SLURM_ARRAY_TASK_ID * length))
  end=$((first + length < number ? first + length : number))
  [ "$first" -lt "$number" ] || exit 0 # more tasks than it takes
  exec "${calibrate[@]}" --prompt-range "$first:$end" --profile "$plan.parts/$(printf %06d "$first")"
  ;;
plan)
  if [ ! -d "$plan.profile" ]; then # under its name when it is whole
    rm -rf "$plan.joined"
    "$program" merge -o "$plan.joined" "$plan.parts"/*
    mv "$plan.joined" "$plan.profile"
  fi
  exec "${calibrate[@]}" --profile "$plan.profile" -o "$plan"
  ;;
*)
  echo "slurm_calibrate.sh: the first word is measure or plan, not $what" >&2
  exit 2
  ;;
esac
