"""Wan-AI's original layout from diffusers' one: golden data of its names and of PyTorch's file format, and whole folders.

    python tools/golden/original_layout.py
    python tools/golden/original_layout.py models/tiny-wan Wan2.1-T2V-tiny

Without arguments writes tests/golden/data/original/: names.json (Wan-AI's name → diffusers' name, in blocks once for all
with N for their number; "vae_wan21" are those of the public Wan2.1_VAE.pth, held against diffusers' own converter, "vae_wan22" of Wan2.2_VAE.pth) and
state_dict.pth, a small state_dict as torch.save writes it. With a model in diffusers' layout and a new folder writes that
model there as Wan-AI publishes its own: what text encoder and autoencoder lose on the way are their configurations.
Deterministic.
"""

import json
import pathlib
import re
import shutil
import sys

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/golden/data/original"

# Regular expressions of diffusers' names, and Wan-AI's.
TRANSFORMER = [
    (r"condition_embedder\.(text|time)_embedder\.linear_1", r"\1_embedding.0"),
    (r"condition_embedder\.(text|time)_embedder\.linear_2", r"\1_embedding.2"),
    (r"condition_embedder\.time_proj", r"time_projection.1"),
    (r"^scale_shift_table", r"head.modulation"),
    (r"^proj_out", r"head.head"),
    (r"scale_shift_table", r"modulation"),
    (r"\.norm2\.", r".norm3."),
    (r"ffn\.net\.0\.proj", r"ffn.0"),
    (r"ffn\.net\.2", r"ffn.2"),
    (r"attn([12])\.to_out\.0", r"attn\1.o"),
    (r"attn([12])\.to_", r"attn\1."),
    (r"attn1", r"self_attn"),
    (r"attn2", r"cross_attn"),
]
TEXT_ENCODER = [
    (r"^shared|^encoder\.embed_tokens", r"token_embedding"),
    (r"^encoder\.final_layer_norm", r"norm"),
    (r"^encoder\.block\.", r"blocks."),
    (r"layer\.0\.SelfAttention\.relative_attention_bias", r"pos_embedding.embedding"),
    (r"layer\.0\.SelfAttention", r"attn"),
    (r"layer\.0\.layer_norm", r"norm1"),
    (r"layer\.1\.layer_norm", r"norm2"),
    (r"layer\.1\.DenseReluDense\.wi_0", r"ffn.gate.0"),
    (r"layer\.1\.DenseReluDense\.wi_1", r"ffn.fc1"),
    (r"layer\.1\.DenseReluDense\.wo", r"ffn.fc2"),
]
VAE = [
    (r"^quant_conv", r"conv1"),
    (r"^post_quant_conv", r"conv2"),
    (r"(resnets\.\d+|down_blocks\.\d+)\.norm1", r"\1.residual.0"),
    (r"(resnets\.\d+|down_blocks\.\d+)\.conv1", r"\1.residual.2"),
    (r"(resnets\.\d+|down_blocks\.\d+)\.norm2", r"\1.residual.3"),
    (r"(resnets\.\d+|down_blocks\.\d+)\.conv2", r"\1.residual.6"),
    (r"conv_shortcut", r"shortcut"),
    (r"mid_block\.resnets\.0", r"middle.0"),
    (r"mid_block\.attentions\.0", r"middle.1"),
    (r"mid_block\.resnets\.1", r"middle.2"),
    (r"down_blocks", r"downsamples"),
    (r"\.conv_in\.", r".conv1."),
    (r"\.norm_out\.", r".head.0."),
    (r"\.conv_out\.", r".head.2."),
]


def original_name(name, table):
    for pattern, theirs in table:
        name = re.sub(pattern, theirs, name)
    return name


def original_residual_vae_name(name, num_res_blocks):
    """Wan 2.2's, each level a row of its own: its residual blocks, one more in the decoder, and what changes the size."""
    name = original_name(name, VAE).replace("up_blocks", "upsamples")
    for row, layers in (("downsamples", num_res_blocks), ("upsamples", num_res_blocks + 1)):
        name = re.sub(rf"({row}\.\d+)\.resnets\.", rf"\1.{row}.", name)
        name = re.sub(rf"({row}\.\d+)\.{row[:-1]}r\.", rf"\1.{row}.{layers}.", name)
    return name


def original_vae_name(name, num_res_blocks):
    """The decoder's levels in one row: num_res_blocks + 1 residual blocks each, and what doubles the size."""
    layers = num_res_blocks + 2

    def place(match):
        index = num_res_blocks + 1 if match[2].startswith("upsamplers") else int(match[2].split(".")[1])
        return f"decoder.upsamples.{int(match[1]) * layers + index}"

    return re.sub(r"decoder\.up_blocks\.(\d+)\.(resnets\.\d+|upsamplers\.0)", place, original_name(name, VAE))


def load_component(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name != "golden.safetensors":
            tensors |= load_file(file)
    return json.loads((folder / "config.json").read_text()), tensors


def vae_names(folder):
    config, tensors = load_component(folder)
    original = original_residual_vae_name if config.get("is_residual") else original_vae_name
    names = {original(name, config["num_res_blocks"]): name for name in tensors}
    assert len(names) == len(tensors)
    return names


def write_names():
    _, transformer = load_component(ROOT / "models/tiny-wan/transformer")
    _, text_encoder = load_component(ROOT / "models/tiny-wan/text_encoder")
    without_number = lambda name: re.sub(r"\b(blocks?)\.\d+", r"\1.N", name)
    names = {
        "transformer": {without_number(original_name(n, TRANSFORMER)): without_number(n) for n in transformer},
        "text_encoder": {without_number(original_name(n, TEXT_ENCODER)): without_number(n) for n in text_encoder},
        "vae": vae_names(ROOT / "models/tiny-wan/vae"),
        "vae_wan21": vae_names(ROOT / "tests/golden/data/vae/wan21"),
        "vae_wan22": vae_names(ROOT / "tests/golden/data/vae/wan22"),
    }
    converted = convert_wan_vae_to_diffusers({name: name for name in names["vae_wan21"]})
    assert {theirs: ours for ours, theirs in converted.items()} == names["vae_wan21"]
    (DATA / "names.json").write_text(json.dumps(names, indent=0, sort_keys=True) + "\n")


def write_state_dict():
    """Every kind of tensor that torch.save writes in its usual way: value i of a tensor is i."""
    state = torch.nn.Linear(3, 2).state_dict()  # an OrderedDict that notes versions, as public files are
    state.clear()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.int16,
                  torch.int8, torch.uint8):  # fmt: skip
        state[str(dtype)] = torch.arange(6).reshape(2, 3).to(dtype)
    whole = torch.arange(300, dtype=torch.float32)
    state["whole"] = whole
    state["part"] = whole[256:].reshape(4, 11)
    state["parameter"] = torch.nn.Parameter(torch.arange(4, dtype=torch.float32))
    state["flags"] = torch.tensor([False, True])
    state["scalar"] = torch.tensor(7.0)
    state["none"] = torch.empty(0, 3)
    torch.save(state, DATA / "state_dict.pth")


def write_folder(source, target):
    target.mkdir(parents=True)
    config, transformer = load_component(source / "transformer")
    save_file({original_name(name, TRANSFORMER): value for name, value in transformer.items()},
              target / "diffusion_pytorch_model.safetensors")  # fmt: skip
    heads = config["num_attention_heads"]
    original = {"_class_name": "WanModel", "model_type": "t2v", "text_len": 512, "dim": heads * config["attention_head_dim"],
                "num_heads": heads, "in_dim": config["in_channels"], "out_dim": config["out_channels"]}  # fmt: skip
    original |= {key: config[key] for key in ("eps", "ffn_dim", "freq_dim", "num_layers")}
    if config["text_dim"] != 4096:
        original["text_dim"] = config["text_dim"]
    (target / "config.json").write_text(json.dumps(original, indent=2))

    _, text_encoder = load_component(source / "text_encoder")
    torch.save({original_name(name, TEXT_ENCODER): value for name, value in text_encoder.items()},
               target / "models_t5_umt5-xxl-enc-bf16.pth")  # fmt: skip
    config, vae = load_component(source / "vae")
    torch.save({original_vae_name(name, config["num_res_blocks"]): value for name, value in vae.items()},
               target / "Wan2.1_VAE.pth")  # fmt: skip
    shutil.copytree(source / "tokenizer", target / "google/umt5-xxl")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        write_folder(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    else:
        DATA.mkdir(parents=True, exist_ok=True)
        write_names()
        write_state_dict()
