#!/usr/bin/env bash
# Makes all golden data anew from diffusers' and transformers' own classes. Deterministic: no difference means nothing changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! .venv/bin/python -c 'import torch, diffusers, transformers, ftfy, peft, gguf' 2>/dev/null; then
  python3 -m venv .venv
  .venv/bin/pip install --quiet torch==2.11.0 diffusers==0.42.1 transformers==5.17.0 sentencepiece safetensors ftfy numpy protobuf accelerate peft==0.21.2 gguf==0.19.0
fi
for script in tools/golden/*.py; do
  case $(basename "$script") in _*) continue ;; esac
  echo "$script"
  .venv/bin/python "$script"
done
