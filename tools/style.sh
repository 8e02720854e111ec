#!/usr/bin/env bash
# How the sources look. usage: [BASE=COMMIT] tools/style.sh format | sizes | tidy [--all]
#   format: as clang-format 14 lays them out    sizes: tools/check_sizes.py
#   tidy: clang-tidy 14 over what changed since BASE, or over all sources (minutes). BASE: where this branch left main; on main, which left
#   nothing, its last commit but one
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}

have() { command -v "$1" >/dev/null || { echo "left out: this system has no $1"; return 1; }; }

commit_of() { git rev-parse --verify --quiet "$1^{commit}"; }

base_of_tidy() {
  local head base
  head=$(commit_of HEAD) || { echo "clang-tidy looks at what changed since a commit, and git knows none here: clone the project with git" >&2; return 1; }
  if [ -n "${BASE:-}" ]; then
    commit_of "$BASE" || { echo "BASE=$BASE: git knows no such commit here; name one that \`git log\` shows" >&2; return 1; }
    return
  fi
  base=$(git merge-base HEAD origin/main 2>/dev/null || git merge-base HEAD main 2>/dev/null || echo "$head")
  if [ "$base" = "$head" ] && ! base=$(commit_of HEAD^); then
    [ "$(git rev-parse --is-shallow-repository)" = false ] || return 0  # there is one, which this clone does not have
    base=$(git hash-object -t tree /dev/null)                            # git's empty tree: all is new
  fi
  echo "$base"
}

# With what git does not have yet. A changed header is looked at with the source of its name.
tidy_sources() {
  local patterns=('src/*.cpp' 'src/*.h')
  { git diff --name-only --diff-filter=d "$1" -- "${patterns[@]}"; git ls-files --others --exclude-standard -- "${patterns[@]}"; } | sed 's/\.h$/.cpp/' | sort -u |
    { grep -v -e '_test\.cpp$' -e '^src/backend/cuda/' || true; } | while read -r file; do [ ! -f "$file" ] || echo "$file"; done
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
    base=$(base_of_tidy)
    [ -n "$base" ] || { echo "left out: this clone has one commit alone, so that nobody can tell what changed; \`make tidy\` looks at all sources"; exit 0; }
    since="since ${base:0:10}"
    files=$(tidy_sources "$base")
    [ -n "$files" ] || { echo "no changed source $since"; exit 0; }
    echo "$(wc -l <<<"$files") sources, changed $since"
    configure build/tidy
    failed=$(mktemp)
    trap 'rm -f "$failed"' EXIT
    # clang-tidy counts on stderr what it kept to itself; what it found stands on stdout.
    FAILED=$failed xargs -P "$jobs" -I{} sh -c 'clang-tidy-14 -p build/tidy --quiet --warnings-as-errors="*" "$1" || echo "$1" >>"$FAILED"' sh {} <<<"$files" \
      2> >(grep -v -e 'warnings generated' -e 'warnings treated as errors' >&2 || true)
    # Last, where it is seen: findings stand far above, between those of other files.
    [ ! -s "$failed" ] || { echo "clang-tidy: findings (above) in $(wc -l <"$failed") of the sources:" && sort "$failed"; exit 1; } >&2
    ;;
  *) echo "usage: [BASE=COMMIT] tools/style.sh format | sizes | tidy [--all]" >&2; exit 2 ;;
esac
