#!/bin/sh
# Attention kernels against their targets, torch's own for comparison: prints a table, writes out/bench.json, and every sample, with
# machine and commit, to out/bench_samples.json. Usage: tools/bench.sh BUILD_FOLDER [further flags of calibatt_bench]
set -eu
cd "$(dirname "$0")/.."
build=$1
shift

python=.venv/bin/python
if ! $python -c 'import torch' 2>/dev/null; then
  echo "Installing torch for the comparison into .venv (once)"
  python3 -m venv .venv
  .venv/bin/pip install --quiet torch numpy
fi

mkdir -p out
status=0
"$build"/bench/calibatt_bench --torch $python --out out/bench.json --raw out/bench_samples.json "$@" || status=$?
if [ $status -gt 1 ]; then exit $status; fi

$python - <<'EOF'
import json, platform, subprocess, time

with open("out/bench_samples.json") as file:
    result = json.load(file)
cpu = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith(("model name", "Model"))]
result["machine"] = {"cpu": cpu[0] if cpu else platform.processor(), "cores": len(cpu), "load": open("/proc/loadavg").read().split()[:3]}
result["commit"] = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
result["date"] = time.strftime("%Y-%m-%d")
with open("out/bench_samples.json", "w") as file:
    json.dump(result, file, indent=1)
EOF
exit $status
