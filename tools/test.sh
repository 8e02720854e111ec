#!/usr/bin/env bash
# Every check of the project: format, unit, conformance, golden and end-to-end tests, then the unit tests again under
# AddressSanitizer and UndefinedBehaviorSanitizer; where nvcc is, the CUDA kernels are compiled, and tested where a GPU
# is. Expects the preset `cpu` built.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}

echo "== format"
git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror

echo "== tests (release)"
ctest --preset cpu -j "$jobs"

echo "== unit tests (address and undefined-behaviour sanitizers)"
cmake --preset asan-ubsan >/dev/null
cmake --build --preset asan-ubsan -j "$jobs" --target unit_tests
ctest --preset asan-ubsan -j "$jobs" -L unit

if command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  echo "== CUDA kernels (compiled; tested where there is a GPU)"
  cmake --preset cuda >/dev/null
  cmake --build --preset cuda -j "$jobs" --target cuda_tests
  ctest --preset cuda -R '^cuda\.|[/_]cuda|DevicePipeline'
else
  echo "== CUDA kernels: left out, there is no nvcc"
fi
