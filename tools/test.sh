#!/usr/bin/env bash
# Every check of the project: format, sizes, unit, conformance, golden and end-to-end tests, clang-tidy over what changed, then the unit tests
# again under AddressSanitizer and UndefinedBehaviorSanitizer; where nvcc is, the CUDA kernels are compiled, and tested where a GPU is.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}

echo "== format"
tools/style.sh format

echo "== sizes of files, functions and lines"
tools/style.sh sizes

echo "== tests (release)"
cmake --preset cpu -DCALIBATT_TESTS=ON >/dev/null
cmake --build --preset cpu -j "$jobs"
ctest --preset cpu -j "$jobs" --no-tests=error

echo "== clang-tidy (changed sources)"
JOBS=$jobs tools/style.sh tidy

echo "== unit tests (address and undefined-behaviour sanitizers)"
cmake --preset asan-ubsan -DCALIBATT_TESTS=ON >/dev/null
cmake --build --preset asan-ubsan -j "$jobs" --target unit_tests
ctest --preset asan-ubsan -j "$jobs" -L unit --no-tests=error

if command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  echo "== CUDA kernels (compiled; tested where there is a GPU)"
  cmake --preset cuda -DCALIBATT_TESTS=ON >/dev/null
  cmake --build --preset cuda -j "$jobs" --target cuda_tests
  ctest --preset cuda -R '^cuda(_[a-z]+)?\.|[/_]cuda|DevicePipeline'
else
  echo "== CUDA kernels: left out, there is no nvcc"
fi
