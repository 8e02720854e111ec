#!/usr/bin/env bash
# The demo: calibrate the shipped model on four prompts, then make two held-out videos dense and calibrated.
# usage: tools/demo.sh PATH_OF_CALIBATT     results: out/
set -euo pipefail
calibatt=$1
cd "$(dirname "$0")/.."
model=models/tiny-wan
out=out
mkdir -p $out
rm -rf $out/plan.safetensors $out/plan.safetensors.profile   # from scratch: the time below is all of it
head -n 4 $model/prompts/calibration_prompts.txt > $out/calibration_prompts.txt

echo "1/3  calibrate on $(wc -l < $out/calibration_prompts.txt) prompts"
# 2.6 for the 2.5 times that are promised: the speed of a machine of two cores differs from minute to minute (docs/decisions/0006).
"$calibatt" calibrate --model $model --prompts $out/calibration_prompts.txt --speedup 2.6 -o $out/plan.safetensors --report $out/calibration.json

echo
echo "2/3  the plan"
"$calibatt" inspect $out/plan.safetensors --density-png $out/density.png --site 4 4 1 --head-png $out/head.png

echo
echo "3/3  two held-out prompts, dense and calibrated"
"$calibatt" bench --model $model --plan $out/plan.safetensors --prompts $model/prompts/heldout.txt --max-prompts 2 \
  --seed 1 --calibration-report $out/calibration.json -o $out --html $out/report.html

echo
echo "Open out/report.html in a browser: the videos with a slider, times, and what the plan computes. Its numbers are in out/report.json;"
echo "out/prompt_0_side_by_side.mp4 has both videos beside each other (left dense, right calibrated)."
