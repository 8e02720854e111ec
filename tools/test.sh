#!/usr/bin/env bash
# Every check of the project: format, unit, conformance, golden and end-to-end tests, then the unit tests again under
# AddressSanitizer and UndefinedBehaviorSanitizer. Expects the preset `cpu` built.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}

echo "== format"
git ls-files '*.h' '*.cpp' | xargs clang-format --dry-run --Werror

echo "== tests (release)"
ctest --preset cpu -j "$jobs"

echo "== unit tests (address and undefined-behaviour sanitizers)"
cmake --preset asan-ubsan >/dev/null
cmake --build --preset asan-ubsan -j "$jobs" --target unit_tests
ctest --preset asan-ubsan -j "$jobs" -L unit
