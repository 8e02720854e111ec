#!/usr/bin/env bash
# How the sources look. usage: tools/style.sh format | sizes | tidy [--all]
#   format: as clang-format 14 lays them out    sizes: tools/check_sizes.py
#   tidy: clang-tidy 14 over what this branch changed since it left main, or over all sources (minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}

have() { command -v "$1" >/dev/null || { echo "left out: this system has no $1"; return 1; }; }

tidy_sources() {
  local base
  base=$(git merge-base HEAD origin/main 2>/dev/null || git merge-base HEAD main 2>/dev/null || git rev-parse HEAD)
  # A changed header is looked at with the source of its name.
  git diff --name-only --diff-filter=d "$base" -- 'src/*.cpp' 'src/*.h' | sed 's/\.h$/.cpp/' | sort -u |
    grep -v -e '_test\.cpp$' -e '^src/backend/cuda/' | while read -r file; do [ ! -f "$file" ] || echo "$file"; done
}

# Folders of their own: GCC's precompiled headers, which build/cpu has, are none to clang.
configure() { cmake --preset cpu -B "$1" -DCALIBATT_TESTS=OFF -DCALIBATT_BENCH=OFF -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON "${@:2}" >/dev/null; }

case ${1:-} in
  format) ! have clang-format-14 || git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format-14 --dry-run --Werror ;;
  sizes) python3 tools/check_sizes.py ;;
  tidy)
    have clang-tidy-14 || exit 0
    if [ "${2:-}" = --all ]; then
      configure build/tidy-all -DCMAKE_UNITY_BUILD=ON
      exec python3 tools/tidy_all.py build/tidy-all "$jobs"
    fi
    files=$(tidy_sources || true)
    [ -n "$files" ] || { echo "no changed source"; exit 0; }
    echo "$(wc -l <<<"$files") sources"
    configure build/tidy
    failed=$(mktemp)
    trap 'rm -f "$failed"' EXIT
    # clang-tidy counts on stderr what it kept to itself; what it found stands on stdout.
    FAILED=$failed xargs -P "$jobs" -I{} sh -c 'clang-tidy-14 -p build/tidy --quiet --warnings-as-errors="*" "$1" || echo "$1" >>"$FAILED"' sh {} <<<"$files" \
      2> >(grep -v -e 'warnings generated' -e 'warnings treated as errors' >&2 || true)
    # Last, where it is seen: findings stand far above, between those of other files.
    [ ! -s "$failed" ] || { echo "clang-tidy: findings (above) in $(wc -l <"$failed") of the sources:" && sort "$failed"; exit 1; } >&2
    ;;
  *) echo "usage: tools/style.sh format | sizes | tidy [--all]" >&2; exit 2 ;;
esac
