#!/usr/bin/env bash
# Makes .venv: torch, diffusers and what golden data and the tests of the Python package take beside them. Does nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(torch==2.11.0 diffusers==0.42.1 transformers==5.17.0 sentencepiece safetensors ftfy numpy protobuf accelerate peft==0.21.2 gguf==0.19.0 pytest)
.venv/bin/python -c 'import torch, diffusers, transformers, sentencepiece, ftfy, accelerate, peft, gguf, pytest' 2>/dev/null && exit 0
echo "calibatt: installing torch and diffusers into .venv (once)"
python3 -m venv .venv
.venv/bin/pip install --quiet "${packages[@]}"
