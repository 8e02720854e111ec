#!/usr/bin/env bash
# Makes all golden data anew from diffusers' and transformers' own classes. Deterministic: no difference means nothing changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools/torch_environment.sh
for script in tools/golden/*.py; do
  case $(basename "$script") in _*) continue ;; esac
  echo "$script"
  .venv/bin/python "$script"
done
