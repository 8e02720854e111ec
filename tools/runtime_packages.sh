#!/usr/bin/env bash
# The Debian or Ubuntu packages whose libraries an installed calibatt, program and library, loads, one a line; CUDA's own come with NVIDIA's images.
# usage: tools/runtime_packages.sh PREFIX/lib
set -euo pipefail
library=$(find "$1" -name 'libcalibatt.so.*' -type f | head -1)
[ -n "$library" ] || { echo "calibatt: no libcalibatt.so in $1" >&2; exit 1; }
program=$(dirname "$1")/bin/calibatt
[ -x "$program" ] || { echo "calibatt: no $program" >&2; exit 1; }
# Only what they ask for themselves: apt brings what those need. The loader may name a file below /lib that its package lists below /usr/lib.
for file in "$library" "$program"; do objdump -p "$file" | awk -v file="$file" '$1 == "NEEDED" && $2 !~ /^libcalibatt/ { print file, $2 }'; done |
  while read -r file name; do
  path=$(ldd "$file" | awk -v name="$name" '$1 == name { print $3 }')
  { dpkg-query -S "$path" || dpkg-query -S "/usr$path" || dpkg-query -S "$(realpath "$path")"; } 2>/dev/null | cut -d: -f1 | head -1
done | grep -v -E '^(libc6|libcu|cuda-)' | sort -u
