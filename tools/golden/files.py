"""Golden data of files that people have: one transformer in one file, in bf16 and in every form of fp8.

    python tools/golden/files.py

Writes tests/golden/data/files/ from the small transformer of tests/golden/data/lora: codes.safetensors (every 8-bit
code, and what torch makes of it); bf16, cast, comfy_old, comfy_new and lightx2v.safetensors, under Wan-AI's names with
the prefixes and scales of their kinds, each with <kind>.values.safetensors, what its blocks' first layers hold in
float32 by torch: element · scale. Deterministic.
"""

import json
import pathlib

import torch
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data"
DATA = ROOT / "files"

NAMES = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "attn1.": "self_attn.", "attn2.": "cross_attn.", ".to_q": ".q", ".to_k": ".k", ".to_v": ".v", ".to_out.0": ".o",
    ".norm2.": ".norm3.", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
}  # fmt: skip


def original(name):
    if name.endswith("scale_shift_table"):
        return "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def is_matrix(name):
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name


def scaled(weight, dtype, per_row):
    """→ elements, scale. The largest magnitude becomes the largest of the dtype."""
    most = weight.abs().amax(1, keepdim=True) if per_row else weight.abs().amax()
    scale = (most / torch.finfo(dtype).max).float()
    return (weight / scale).to(dtype), scale


def save(kind, tensors, metadata=None):
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, DATA / f"{kind}.safetensors", metadata)


def save_values(kind, values):
    kept = {name: value for name, value in values.items() if name.startswith("blocks.1.") and is_matrix(original(name))}
    save_file({name: value.float().contiguous() for name, value in kept.items()}, DATA / f"{kind}.values.safetensors")


def main():
    DATA.mkdir(parents=True, exist_ok=True)
    codes = torch.arange(256, dtype=torch.uint8)
    save("codes", {"e4m3": codes.view(torch.float8_e4m3fn), "e5m2": codes.view(torch.float8_e5m2),
                   "e4m3.values": codes.view(torch.float8_e4m3fn).float(), "e5m2.values": codes.view(torch.float8_e5m2).float()})  # fmt: skip

    weights = load_file(ROOT / "lora/diffusion_pytorch_model.safetensors")
    save("bf16", {"module." + original(name): value.bfloat16() for name, value in weights.items()})
    save_values("bf16", {name: value.bfloat16() for name, value in weights.items()})

    cast = {name: value.to(torch.float8_e5m2 if "attn2" in name else torch.float8_e4m3fn) if is_matrix(name)
            else value.bfloat16() for name, value in weights.items()}  # fmt: skip
    save("cast", {original(name): value for name, value in cast.items()})
    save_values("cast", cast)

    for kind in ("comfy_old", "comfy_new", "lightx2v"):
        prefix = {"comfy_old": "model.diffusion_model.", "comfy_new": "diffusion_model.", "lightx2v": ""}[kind]
        tensors, values, layers = {}, {}, {}
        for name, value in weights.items():
            if not is_matrix(name):
                tensors[prefix + original(name)] = value.half() if kind == "comfy_old" else value
                continue
            elements, scale = scaled(value, torch.float8_e4m3fn, per_row=kind == "lightx2v")
            values[name] = elements.float() * scale
            layer = prefix + original(name).removesuffix(".weight")
            tensors[f"{layer}.weight"] = elements
            if kind == "comfy_old":
                tensors |= {f"{layer}.scale_weight": scale.reshape(1), f"{layer}.scale_input": torch.ones(1)}
            elif kind == "comfy_new":
                note = json.dumps({"format": "float8_e4m3fn"}).encode()
                tensors |= {f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.tensor(1.0),
                            f"{layer}.comfy_quant": torch.frombuffer(bytearray(note), dtype=torch.uint8)}  # fmt: skip
                layers[layer] = {"format": "float8_e4m3fn"}
            else:
                tensors[f"{layer}.weight_scale"] = scale
        if kind == "comfy_old":  # a whole checkpoint: other models lie beside it
            tensors |= {prefix + "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
                        "first_stage_model.conv1.weight": torch.zeros(3)}  # fmt: skip
        metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})} if layers else None
        save(kind, tensors, metadata)
        save_values(kind, values)


if __name__ == "__main__":
    main()
