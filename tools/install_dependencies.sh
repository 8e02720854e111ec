#!/usr/bin/env bash
# Installs the packages that are missing; does nothing when all are there.
# usage: tools/install_dependencies.sh [program | tests | bench | wheel]     what is built (default: program); tests and bench include it
# Debian 12 and newer, Ubuntu 22.04 and newer; package names are the same in all of them.
set -euo pipefail

# What a dependency's CMake or pkg-config file asks for is named here too, for packages that are only recommended are not installed
# (ocl-icd-opencl-dev: oneDNN's CMake file looks for OpenCL).
attention_packages=(g++ cmake ninja-build pkg-config libhwy-dev libxxhash-dev libzstd-dev nlohmann-json3-dev)
packages=(
  "${attention_packages[@]}"
  libdnnl-dev ocl-icd-opencl-dev libutf8proc-dev libcli11-dev libcpp-httplib-dev libavcodec-dev libavformat-dev libavutil-dev libswscale-dev
)
test_packages=(git libgtest-dev libgmock-dev python3)
style_packages=(clang-format-14 clang-tidy-14)  # newer ones judge differently; where version 14 is not to be had, tools/test.sh says so
bench_packages=(git python3 python3-venv)
wheel_packages=(python3 python3-venv ca-certificates)
case ${1:-program} in
  program) ;;
  tests) packages+=("${test_packages[@]}") ;;
  bench) packages+=("${bench_packages[@]}") ;;
  wheel) packages=("${attention_packages[@]}" "${wheel_packages[@]}") ;;
  *) echo "calibatt: $0 takes program, tests, bench or wheel, not $1" >&2; exit 2 ;;
esac

installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'install ok installed'; }

command -v dpkg-query >/dev/null || {
  # Not Debian's family: CMake names what it does not find.
  command -v cmake >/dev/null || { echo "calibatt: this system has no apt; install the equivalents of: ${packages[*]}" >&2; exit 1; }
  exit 0
}
missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
if [ "${1:-}" = tests ]; then
  for package in "${style_packages[@]}"; do
    installed "$package" || { [ ${#missing[@]} -eq 0 ] && [ -z "$(apt-cache madison "$package" 2>/dev/null)" ]; } || missing+=("$package")
  done
fi
[ ${#missing[@]} -eq 0 ] && exit 0

ask_administrator() {
  echo "calibatt: packages are missing$1. An administrator must run, once:  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 1
}
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || ask_administrator ", and there is no sudo"
  sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; } || ask_administrator ", and sudo does not let you install them"
  as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get -qq -o Acquire::Retries=1 "$@" >>"$log" 2>&1; }

echo "calibatt: installing ${missing[*]}"
apt update || true  # what it could not fetch shows when a package is not found
wanted=()
for package in "${missing[@]}"; do
  if [[ " ${style_packages[*]} " == *" $package "* ]] && [ -z "$(apt-cache madison "$package" 2>/dev/null)" ]; then continue; fi
  wanted+=("$package")
done
[ ${#wanted[@]} -eq 0 ] && exit 0
if ! apt install -y --no-install-recommends "${wanted[@]}"; then
  reason=$(grep -m 1 -E '^(E|Err|W):?' "$log" || tail -1 "$log")
  if grep -qE 'Temporary failure|[Cc]ould not (resolve|connect|handshake)|Network is unreachable|Failed to fetch|timed out' "$log"; then
    echo "calibatt: apt-get cannot reach its package servers (is there a network?): ${reason:0:200}" >&2
  elif grep -q 'Unable to locate package' "$log"; then
    echo "calibatt: apt-get does not know a package (on Ubuntu, enable the component universe; older systems lack some): ${reason:0:200}" >&2
  else
    echo "calibatt: apt-get could not install the packages: ${reason:0:300}" >&2
  fi
  exit 1
fi
