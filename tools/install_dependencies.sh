#!/usr/bin/env bash
# Installs the Debian 12 packages that building, testing and the demo need; does nothing when all are there.
set -euo pipefail

# Each library that a dependency's CMake or pkg-config file asks for is named here: recommended packages are not installed
# (ocl-icd-opencl-dev: oneDNN's CMake file looks for OpenCL).
packages=(
  g++ cmake ninja-build pkg-config git clang-format ffmpeg
  libdnnl-dev ocl-icd-opencl-dev libhwy-dev libsentencepiece-dev libutf8proc-dev libxxhash-dev libzstd-dev libcli11-dev nlohmann-json3-dev
  libavcodec-dev libavformat-dev libavutil-dev libswscale-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  python3 python3-venv
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

command -v apt-get >/dev/null || {
  echo "calibatt: this system has no apt-get; install the equivalents of: ${missing[*]}" >&2
  exit 1
}
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "calibatt: missing packages (${missing[*]}): run 'apt-get install ${missing[*]}' as root, then this command again" >&2
    exit 1
  }
  sudo=(sudo)
fi
echo "calibatt: installing ${missing[*]}"
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
