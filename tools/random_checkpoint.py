#!/usr/bin/env python3
"""Writes a whole Wan 2.1 (T2V, I2V), Wan 2.2 (T2V-A14B, TI2V-5B) or Mochi 1 folder in the diffusers layout with random weights, at the public
models' sizes.

Time, memory and end-to-end behaviour (loading, offloading, plans, interrupts) depend on shapes only, so they can be tried without the
public weights; the videos are noise. Transformer and text encoder are bfloat16, N(0, 1/√inputs), in shards of at most 5 GB, made one
shard at a time (on a GPU where there is one); the video autoencoder is the public configuration in float32 as diffusers initialises it.
The tokenizer is the small one of models/tiny-wan, so the text encoder's vocabulary is that tokenizer's and its layers are few
(--text-layers; the public UMT5-XXL and T5-XXL have 24), its width the public one. Both transformers of A14B are one on disk (transformer_2
is a link), which spares 28 GB; in memory they are two. "small", "small-a14b", "small-i2v" and "mochi-small" try the layouts in seconds on a
CPU. --transformer takes one that exists in the place of a new one: what bench/cuda/forward.py --keep leaves, or another folder's.

Needs torch, diffusers, safetensors, and for I2V transformers. Usage:
random_checkpoint.py --size 14B|1.3B|A14B|14B-i2v|5B|small|small-a14b|small-i2v|mochi|mochi-small --output FOLDER
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLMochi, AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, MochiTransformer3DModel
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

TINY_WAN = Path(__file__).resolve().parent.parent / "models" / "tiny-wan"
SHARD_BYTES = 5 * 10**9
TEXT_XXL = {"d_model": 4096, "d_ff": 10240, "num_heads": 64, "d_kv": 64}
EXPERTS = {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
SIZES = {
    "14B": {
        "transformer": {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40},
        "text": TEXT_XXL, "vae": {}, "flow_shift": 5.0,
    },
    "1.3B": {
        "transformer": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
        "text": TEXT_XXL, "vae": {}, "flow_shift": 3.0,
    },
    "5B": {  # Wan 2.2 TI2V-5B
        "transformer": {"num_attention_heads": 24, "attention_head_dim": 128, "ffn_dim": 14336, "num_layers": 30,
                        "in_channels": 48, "out_channels": 48},
        "text": TEXT_XXL, "flow_shift": 5.0, "index": {"expand_timesteps": True},
        "vae": {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2, "in_channels": 12,
                "out_channels": 12, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
    },
    "small": {
        "transformer": {"num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 512, "num_layers": 2},
        "text": {"d_model": 128, "d_ff": 256, "num_heads": 2, "d_kv": 64}, "vae": {"base_dim": 16}, "flow_shift": 3.0,
    },
    "14B-i2v": {  # Wan 2.1 I2V
        "transformer": {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40,
                        "in_channels": 36, "out_channels": 16, "image_dim": 1280, "added_kv_proj_dim": 5120},
        "text": TEXT_XXL, "vae": {}, "flow_shift": 5.0,
        "clip": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14},
    },
    "small-i2v": {
        "transformer": {"num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 512, "num_layers": 2, "in_channels": 36,
                        "out_channels": 16, "image_dim": 64, "added_kv_proj_dim": 128},
        "text": {"d_model": 128, "d_ff": 256, "num_heads": 2, "d_kv": 64}, "vae": {"base_dim": 16}, "flow_shift": 3.0,
        "clip": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 32},
    },
    "A14B": {  # Wan 2.2 T2V
        "transformer": {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40},
        "text": TEXT_XXL, "vae": {}, "flow_shift": 3.0, "index": EXPERTS,
    },
    "small-a14b": {
        "transformer": {"num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 512, "num_layers": 2},
        "text": {"d_model": 128, "d_ff": 256, "num_heads": 2, "d_kv": 64}, "vae": {"base_dim": 16}, "flow_shift": 3.0, "index": EXPERTS,
    },
    "mochi": {"model": "mochi", "transformer": {}, "text": TEXT_XXL, "vae": {}},  # the defaults are the public configuration
    "mochi-small": {
        "model": "mochi", "transformer": {"num_attention_heads": 2, "num_layers": 2, "pooled_projection_dim": 64, "text_embed_dim": 128},
        "text": {"d_model": 128, "d_ff": 256, "num_heads": 2, "d_kv": 64},
        "vae": {"encoder_block_out_channels": (32, 32, 32, 32), "decoder_block_out_channels": (32, 32, 32, 64)},
    },
}  # fmt: skip


def make_tensor(name, shape, generator):
    """Norms are ones, vectors and modulation small, matrices and convolutions N(0, 1/√inputs)."""
    if name == "pos_frequencies":  # for frames, rows and columns: a few turns over a video
        scale = torch.tensor([0.3, 0.05, 0.05], device=generator.device)[:, None, None]
        return (scale * torch.randn(shape, device=generator.device, generator=generator)).bfloat16()
    if len(shape) == 1 and "norm" in name and name.endswith("weight"):
        return torch.ones(shape, device=generator.device, dtype=torch.bfloat16)
    deviation = 0.02
    if "embed_tokens" in name or name == "shared.weight":
        deviation = 1.0
    elif len(shape) > 1 and "scale_shift_table" not in name:
        deviation = 1 / math.sqrt(math.prod(shape[1:]))
    noise = torch.empty(shape, device=generator.device, dtype=torch.bfloat16)
    return noise.normal_(0, deviation, generator=generator)


def write_shards(folder, stem, shapes, generator):
    """`stem`.safetensors, or several and `stem`.safetensors.index.json."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, bytes_in_last = [], SHARD_BYTES
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if bytes_in_last + size > SHARD_BYTES:
            shards.append([])
            bytes_in_last = 0
        shards[-1].append(name)
        bytes_in_last += size
    files = [f"{stem}-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    if len(shards) == 1:
        files = [f"{stem}.safetensors"]
    for file, names in zip(files, shards, strict=True):
        save_file({name: make_tensor(name, shapes[name], generator).cpu() for name in names}, folder / file, {"format": "pt"})
        print(f"{folder / file}: {len(names)} tensors, {(folder / file).stat().st_size / 1e9:.2f} GB", flush=True)
    if len(shards) > 1:
        total = 2 * sum(math.prod(shape) for shape in shapes.values())
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def text_shapes(config):
    """Names and shapes of transformers' UMT5EncoderModel, or of T5EncoderModel, whose first layer has the position bias of all."""
    width, inner, hidden = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]
    shapes = {"shared.weight": (config["vocab_size"], width)}
    for layer in range(config["num_layers"]):
        attention, feed_forward = (f"encoder.block.{layer}.layer.{part}." for part in (0, 1))
        for name in "qkv":
            shapes[f"{attention}SelfAttention.{name}.weight"] = (inner, width)
        shapes[f"{attention}SelfAttention.o.weight"] = (width, inner)
        buckets = (config["relative_attention_num_buckets"], config["num_heads"])
        if layer == 0 or config["model_type"] == "umt5":
            shapes[f"{attention}SelfAttention.relative_attention_bias.weight"] = buckets
        shapes[f"{attention}layer_norm.weight"] = (width,)
        for name, shape in (("wi_0", (hidden, width)), ("wi_1", (hidden, width)), ("wo", (width, hidden))):
            shapes[f"{feed_forward}DenseReluDense.{name}.weight"] = shape
        shapes[f"{feed_forward}layer_norm.weight"] = (width,)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    return shapes


def read_json(path):
    return json.loads(path.read_text())


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_clip(config, folder, generator):
    """The encoder and the processor of the picture that a video begins with; what the index says of them."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        encoder = CLIPVisionModel(CLIPVisionConfig(hidden_act="gelu", image_size=224, **config))
    encoder.config.save_pretrained(folder / "image_encoder")
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items() if "position_ids" not in name}
    write_shards(folder / "image_encoder", "model", shapes, generator)
    CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(folder / "image_processor")
    return {"_class_name": "WanImageToVideoPipeline", "image_encoder": ["transformers", "CLIPVisionModel"],
            "image_processor": ["transformers", "CLIPImageProcessor"]}  # fmt: skip


def write_transformer(spec, folder, generator):
    with torch.device("meta"):  # shapes alone
        if spec.get("model") == "mochi":
            transformer = MochiTransformer3DModel(**spec["transformer"])
        else:
            transformer = WanTransformer3DModel(text_dim=spec["text"]["d_model"], **spec["transformer"])
    transformer.save_config(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    write_shards(folder, "diffusion_pytorch_model", shapes, generator)


def write_checkpoint(options):
    spec, folder, text_layers, seed = SIZES[options.size], options.output, options.text_layers, options.seed
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(seed)
    mochi = spec.get("model") == "mochi"
    folder.mkdir(parents=True, exist_ok=True)
    if options.transformer:
        (folder / "transformer").symlink_to(options.transformer.resolve())
    else:
        write_transformer(spec, folder / "transformer", generator)
    if spec.get("index") is EXPERTS:
        (folder / "transformer_2").symlink_to("transformer")

    # Everything that belongs to the tokenizer (vocabulary, special tokens) stays tiny-wan's.
    text = {**read_json(TINY_WAN / "text_encoder" / "config.json"), **spec["text"], "num_layers": text_layers}
    text["num_decoder_layers"] = text_layers
    if mochi:
        text |= {"model_type": "t5", "architectures": ["T5EncoderModel"]}
    write_json(folder / "text_encoder" / "config.json", text)
    write_shards(folder / "text_encoder", "model", text_shapes(text), generator)
    shutil.copytree(TINY_WAN / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)

    torch.manual_seed(seed)
    if mochi:
        AutoencoderKLMochi(**spec["vae"]).save_pretrained(folder / "vae")
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True).save_pretrained(folder / "scheduler")
        parts = {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "text_encoder": ["transformers", "T5EncoderModel"],
                 "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "MochiTransformer3DModel"],
                 "vae": ["diffusers", "AutoencoderKLMochi"]}  # fmt: skip
        index = {"_class_name": "MochiPipeline", "force_zeros_for_empty_prompt": True, **parts}
        write_json(folder / "model_index.json", index)  # last: a folder with it is complete
        return
    AutoencoderKLWan(**spec["vae"]).save_pretrained(folder / "vae")  # the defaults are the public configuration
    scheduler = {**read_json(TINY_WAN / "scheduler" / "scheduler_config.json"), "flow_shift": spec["flow_shift"]}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = read_json(TINY_WAN / "model_index.json") | spec.get("index", {})
    if "clip" in spec:
        index |= write_clip(spec["clip"], folder, generator)
    write_json(folder / "model_index.json", index)  # last: a folder with it is complete


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new or empty; 14B, A14B and 14B-i2v need 30 to 36 GB, mochi 23 GB, 5B 13 GB, 1.3B 4 GB")
    parser.add_argument("--transformer", type=Path, metavar="FOLDER", help="a transformer of this size, to link to")
    parser.add_argument("--text-layers", type=int, default=2, help="of the text encoder; the public one has 24 (0.4 GB each)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.text_layers < 1:
        parser.error("--text-layers: expected at least 1")
    if options.output.exists() and any(options.output.iterdir()):
        parser.error(f"{options.output}: not empty; give a new folder")
    if options.transformer and not (options.transformer / "config.json").is_file():
        parser.error(f"--transformer: {options.transformer} has no config.json")
    write_checkpoint(options)


if __name__ == "__main__":
    sys.exit(main())
