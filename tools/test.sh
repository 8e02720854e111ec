#!/usr/bin/env bash
# Every check of the project: format, sizes, unit, conformance, golden and end-to-end tests, clang-tidy over what changed, then the unit tests
# again under AddressSanitizer and UndefinedBehaviorSanitizer. Where nvcc is, the tests are built with the CUDA backend, and those that need a GPU
# run where there is one; the sanitizers' build is of the CPU alone everywhere. PRESET=cpu: without CUDA; PRESET=cuda: not without.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}
# Those that a GPU runs, if there is one: one after the other, for its memory's sake.
gpu_tests='^cuda(_[a-z]+)?\.|[/_]cuda|DevicePipeline'

preset=${PRESET:-cpu}
case $preset in
  cpu | cuda) ;;
  *) echo "PRESET=$preset: the tests are built as cpu or cuda" >&2; exit 2 ;;
esac
if [ -z "${PRESET:-}" ] && { command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; }; then preset=cuda; fi

part() { echo "== $* ($((SECONDS / 60)) min $((SECONDS % 60)) s)"; }

part format
tools/style.sh format

part sizes of files, functions and lines
tools/style.sh sizes

part "build of the tests (release, $preset)"
if ! cmake --preset "$preset" -DCALIBATT_TESTS=ON >/dev/null; then
  [ -n "${PRESET:-}" ] || [ "$preset" = cpu ] || echo "nvcc is here, so that the tests are built with CUDA; \`make test PRESET=cpu\` builds them without" >&2
  exit 1
fi
cmake --build --preset "$preset" -j "$jobs"
if [ "$preset" = cuda ]; then
  part tests for a CPU
  ctest --preset "$preset" -j "$jobs" -E "$gpu_tests" --no-tests=error
  part "tests for a GPU (left out where there is none)"
  ctest --preset "$preset" -R "$gpu_tests" --no-tests=error
else
  part tests
  ctest --preset "$preset" -j "$jobs" --no-tests=error
fi

part "clang-tidy (changed sources)"
JOBS=$jobs tools/style.sh tidy

part "build of the unit tests (address and undefined-behaviour sanitizers)"
cmake --preset asan-ubsan -DCALIBATT_TESTS=ON >/dev/null
cmake --build --preset asan-ubsan -j "$jobs" --target unit_tests
part "unit tests (address and undefined-behaviour sanitizers)"
ctest --preset asan-ubsan -j "$jobs" -L unit --no-tests=error

part done
