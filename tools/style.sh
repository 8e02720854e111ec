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
  { if [ "${1:-}" = --all ]; then git ls-files 'src/*.cpp'; else git diff --name-only --diff-filter=d "$base" -- 'src/*.cpp' 'src/*.h'; fi; } |
    sed 's/\.h$/.cpp/' | sort -u | grep -v -e '_test\.cpp$' -e '^src/backend/cuda/' | while read -r file; do [ ! -f "$file" ] || echo "$file"; done
}

case ${1:-} in
  format) ! have clang-format-14 || git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format-14 --dry-run --Werror ;;
  sizes) python3 tools/check_sizes.py ;;
  tidy)
    have clang-tidy-14 || exit 0
    files=$(tidy_sources "${2:-}" || true)
    [ -n "$files" ] || { echo "no changed source"; exit 0; }
    echo "$(wc -l <<<"$files") sources"
    # A folder of its own: GCC's precompiled headers, which build/cpu has, are none to clang.
    cmake --preset cpu -B build/tidy -DCALIBATT_TESTS=OFF -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON >/dev/null
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
