#!/usr/bin/env bash
# Hostile files for every reader: tools/fuzz.sh SECONDS [TARGET...]
# Builds the libFuzzer targets (clang; tests/fuzz), gives each the repository's own files of its kind to begin with, runs all of them, or those
# that are named, for so many seconds each, as many at a time as there are cores, and says how many inputs each tried and whether it found
# something. What they learn stays in build/fuzz/corpora, and they begin with it the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?"usage: tools/fuzz.sh SECONDS [TARGET...]"}
shift
targets=("$@")
[ $# -gt 0 ] || targets=(config gguf part picture plan profile prompts request safetensors tokenizer torch video)
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --target fuzzers

corpora=$PWD/build/fuzz/corpora data=tests/golden/data
seed() {  # seed TARGET FILE...: under names that say their folders
  local target=$1 file
  shift
  mkdir -p "$corpora/$target"
  for file; do cp "$file" "$corpora/$target/seed_${file//\//_}"; done
}
seed config models/*/*/*.json models/*/*.json $data/experts/*/config.json
seed gguf $data/gguf/forms.gguf
seed part $data/lora/*.safetensors $data/lora/peft/*.safetensors $data/files/*.safetensors $data/original/state_dict.pth $data/gguf/*.gguf
seed picture $data/pictures/*.{png,jpg,webp} $data/pictures/small/*.{png,webp}
seed plan $data/plan_v*.safetensors
seed prompts models/tiny-wan/prompts/*.txt
seed request tests/fuzz/requests/*
seed safetensors $data/files/codes.safetensors $data/plan_v3_example.safetensors
seed tokenizer $data/tokenizer/spiece.model $data/tokenizer_json/*/tokenizer.json
seed torch $data/original/state_dict.pth
seed video $data/pictures/*.{png,jpg,webp} $data/pictures/small/*.png
build/fuzz/tests/fuzz/make_profile_seeds build/fuzz/profile_seeds
seed profile build/fuzz/profile_seeds/*/*

run_one() {
  local log=build/fuzz/$1.log
  if "build/fuzz/tests/fuzz/calibatt_$1_fuzzer" -max_total_time="$seconds" -rss_limit_mb=3000 -timeout=30 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/$1-" "$corpora/$1" >"$log" 2>&1; then found=none; else found="a finding: see $log"; fi
  printf '%-12s %12s inputs, %s\n' "$1" "$(sed -n 's/stat::number_of_executed_units: *//p' "$log")" "$found"
  [ "$found" = none ]
}
export -f run_one
export seconds corpora
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'run_one {}'
