#!/usr/bin/env bash
# Every check of the project: format, sizes, unit, conformance, golden and end-to-end tests, clang-tidy over what changed, then the unit tests
# again under AddressSanitizer and UndefinedBehaviorSanitizer. Where nvcc is, the tests are built with the CUDA backend, and those that need a GPU
# run where there is one; the sanitizers' build is of the CPU alone everywhere.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}
# Those that a GPU runs, if there is one: one after the other, for its memory's sake.
gpu_tests='^cuda(_[a-z]+)?\.|[/_]cuda|DevicePipeline'

part() { echo "== $* ($((SECONDS / 60)) min $((SECONDS % 60)) s)"; }

part format
tools/style.sh format

part sizes of files, functions and lines
tools/style.sh sizes

preset=cpu
if command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then preset=cuda; fi
part "build of the tests (release, $preset)"
cmake --preset "$preset" -DCALIBATT_TESTS=ON >/dev/null
cmake --build --preset "$preset" -j "$jobs"
if [ "$preset" = cuda ] && [ -e /dev/nvidiactl ]; then
  part tests on the CPU
  ctest --preset "$preset" -j "$jobs" -E "$gpu_tests" --no-tests=error
  part tests on the GPU
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
