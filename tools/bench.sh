#!/usr/bin/env bash
# Attention kernels against their targets, among them torch's CPU kernel in the same run; writes out/bench.json.
# usage: tools/bench.sh BUILD_FOLDER [flags of calibatt_bench]
set -euo pipefail
build=$1
shift
cd "$(dirname "$0")/.."
mkdir -p out
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  echo "calibatt: installing torch into .venv (once, about 2 GB)"
  python3 -m venv .venv
  .venv/bin/pip install --quiet torch==2.11.0 numpy
fi
"$build/bench/calibatt_bench" --torch .venv/bin/python "$@"
