"""Golden data of LoRAs: a small WanTransformer3DModel, LoRA files in every family of keys, and the model with each fused.

    python tools/golden/lora.py [mochi]

Writes tests/golden/data/lora/ and, for a small MochiTransformer3DModel, lora_mochi/: config.json and diffusion_pytorch_model.safetensors (float32); <family>.safetensors, the
LoRA; <family>.fused.safetensors, the tensors that it changes. What diffusers reads is loaded and fused by diffusers
(load_lora_weights of a pipeline, fuse_lora) and, in the family "peft", by peft itself. What diffusers passes over
(differences of weights, norms and modulations) is added here, as its authors' tools do: weight += strength · difference.
Deterministic.
"""

import json
import pathlib
import shutil
import sys

import torch
from diffusers import MochiPipeline, MochiTransformer3DModel, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data"
DATA = GOLDEN / "lora"
CONFIG = dict(num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=36, text_dim=10, freq_dim=8, in_channels=3,
              out_channels=3, qk_norm="rms_norm_across_heads", cross_attn_norm=True)  # fmt: skip
MOCHI = GOLDEN / "lora_mochi"
MOCHI_CONFIG = dict(num_layers=2, num_attention_heads=2, attention_head_dim=12, pooled_projection_dim=16, in_channels=3,
                    text_embed_dim=16, time_embed_dim=8)  # fmt: skip
DIM, FFN, TEXT, FREQ = 24, 36, 10, 8
STRENGTH = 0.75

# Wan-AI's layer: (diffusers', out, in)
BLOCK = {f"{theirs}_attn.{a}": (f"{ours}.{b}", DIM, DIM)
         for theirs, ours in (("self", "attn1"), ("cross", "attn2"))
         for a, b in zip("qkvo", ("to_q", "to_k", "to_v", "to_out.0"))}  # fmt: skip
BLOCK |= {"ffn.0": ("ffn.net.0.proj", FFN, DIM), "ffn.2": ("ffn.net.2", DIM, FFN)}
LAYERS = {f"blocks.{i}.{theirs}": (f"blocks.{i}.{ours}", *size) for i in range(2) for theirs, (ours, *size) in BLOCK.items()}
OTHERS = {
    "text_embedding.0": ("condition_embedder.text_embedder.linear_1", DIM, TEXT),
    "text_embedding.2": ("condition_embedder.text_embedder.linear_2", DIM, DIM),
    "time_embedding.0": ("condition_embedder.time_embedder.linear_1", DIM, FREQ),
    "time_embedding.2": ("condition_embedder.time_embedder.linear_2", DIM, DIM),
    "time_projection.1": ("condition_embedder.time_proj", 6 * DIM, DIM),
}
generator = torch.Generator().manual_seed(31)


def noise(*shape, scale=0.3):
    return torch.randn(shape, generator=generator) * scale


def model(data=DATA):
    return (MochiTransformer3DModel if data == MOCHI else WanTransformer3DModel).from_pretrained(data)


def fused_by_diffusers(state, data=DATA):
    make = MochiPipeline if data == MOCHI else WanPipeline
    pipeline = make(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=model(data))
    pipeline.load_lora_weights({key: value.clone() for key, value in state.items()})
    pipeline.fuse_lora(components=["transformer"], lora_scale=STRENGTH)
    pipeline.unload_lora_weights()
    return pipeline.transformer.state_dict()


def with_differences(state, differences):
    """differences: {tensor of ours: difference}"""
    for name, difference in differences.items():
        state[name] = state[name] + STRENGTH * difference
    return state


def save(name, lora, fused, metadata=None, data=DATA):
    base = model(data).state_dict()
    assert set(fused) == set(base), name
    changed = {key: value.contiguous() for key, value in fused.items() if not torch.equal(value, base[key])}
    save_file(lora, data / f"{name}.safetensors", metadata=metadata)
    save_file(changed, data / f"{name}.fused.safetensors")
    print(f"{name}: {len(lora)} keys change {len(changed)} tensors")


def pair(rank, out, width, dtype=torch.float32):
    return noise(rank, width).to(dtype), noise(out, rank).to(dtype)


@torch.no_grad()
def make_native():
    """LightX2V and others: native names, alpha, bias differences, the head as one difference."""
    lora = {}
    for layer, (_, out, width) in (LAYERS | OTHERS).items():
        down, up = pair(4, out, width)
        lora |= {f"diffusion_model.{layer}.lora_down.weight": down, f"diffusion_model.{layer}.lora_up.weight": up}
        lora[f"diffusion_model.{layer}.diff_b"] = noise(out)
        if layer in LAYERS:
            lora[f"diffusion_model.{layer}.alpha"] = torch.tensor(2.0)
    lora |= {"diffusion_model.head.head.diff": noise(12, DIM), "diffusion_model.head.head.diff_b": noise(12)}
    save("native_down_up", lora, fused_by_diffusers(lora))

    lora = {}
    for layer, (_, out, width) in LAYERS.items():
        down, up = pair(5, out, width, torch.bfloat16)
        lora |= {f"diffusion_model.{layer}.lora_A.weight": down, f"diffusion_model.{layer}.lora_B.weight": up}
    save("native_a_b", lora, fused_by_diffusers({key: value.float() for key, value in lora.items()}))


@torch.no_grad()
def make_differences():
    """What is in the wild and diffusers passes over: no matrices at all but differences, some without a target here."""
    lora, differences = {}, {}
    for layer, (ours, out, width) in list(LAYERS.items())[::3]:
        lora[f"{layer}.diff"] = differences[f"{ours}.weight"] = noise(out, width)
    for i in range(2):
        for theirs, ours in {"self_attn.norm_q": "attn1.norm_q", "cross_attn.norm_k": "attn2.norm_k", "norm3": "norm2"}.items():
            lora[f"blocks.{i}.{theirs}.diff"] = differences[f"blocks.{i}.{ours}.weight"] = noise(DIM)
        lora[f"blocks.{i}.norm3.diff_b"] = differences[f"blocks.{i}.norm2.bias"] = noise(DIM)
        lora[f"blocks.{i}.diff_m"] = differences[f"blocks.{i}.scale_shift_table"] = noise(1, 6, DIM)
        for name in ("k_img", "v_img"):
            lora[f"blocks.{i}.cross_attn.{name}.diff_b"] = noise(DIM)
    lora["time_projection.1.diff_b"] = differences["condition_embedder.time_proj.bias"] = noise(6 * DIM)
    lora["patch_embedding.diff"] = differences["patch_embedding.weight"] = noise(DIM, 3, 1, 2, 2)
    lora["head.diff_m"] = differences["scale_shift_table"] = noise(1, 2, DIM)
    lora["img_emb.proj.1.diff_b"] = noise(DIM)
    save("differences", lora, with_differences(model().state_dict(), differences))


@torch.no_grad()
def make_kohya():
    """musubi-tuner: underscores, an alpha for each layer, float16."""
    lora = {}
    for layer, (_, out, width) in LAYERS.items():
        name = "lora_unet_" + layer.replace(".", "_")
        down, up = pair(4, out, width, torch.float16)
        lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        lora[f"{name}.alpha"] = torch.tensor(1.0, dtype=torch.float16)
    save("kohya", lora, fused_by_diffusers({key: value.float() for key, value in lora.items()}))


def make_diffusers():
    """As WanPipeline.save_lora_weights writes them: diffusers' names, the adapter's settings in the header."""
    lora = {}
    for ours, out, width in list(LAYERS.values())[::2]:
        down, up = pair(3, out, width)
        lora |= {f"transformer.{ours}.lora_A.weight": down, f"transformer.{ours}.lora_B.weight": up}
    fused = fused_by_diffusers(lora)
    save("diffusers", lora, fused)

    # The same with an alpha that only the header has.
    settings = {"transformer.r": 3, "transformer.lora_alpha": 6, "transformer.use_rslora": False}
    base = model().state_dict()
    fused = {key: base[key] + 2 * (value - base[key]) for key, value in fused.items()}
    save("diffusers_alpha", lora, fused, {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})


def make_peft(modules=("to_q", "to_out.0", "net.2"), alphas={"blocks.1.attn2.to_q": 2}, data=DATA):
    """A PEFT adapter's folder, merged by peft itself."""
    import peft

    config = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=list(modules),
                             alpha_pattern=alphas, init_lora_weights=False)  # fmt: skip
    torch.manual_seed(7)
    adapted = peft.get_peft_model(model(data), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = noise(*parameter.shape)
    folder = data / "peft"
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"].sort()  # a set, in any order
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for module in adapted.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("default", STRENGTH)
    fused = {key: value.detach() for key, value in adapted.merge_and_unload().state_dict().items()}
    base = model(data).state_dict()
    save_file({key: value.contiguous() for key, value in fused.items() if not torch.equal(value, base[key])},
              data / "peft.fused.safetensors")  # fmt: skip


def make_base(base, data):
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    for parameter in base.parameters():
        parameter.data = noise(*parameter.shape)
    base.save_pretrained(data)


def make_mochi():
    """Both streams' layers; as MochiPipeline.save_lora_weights writes them, with kohya's names, and by peft."""
    generator.manual_seed(32)
    make_base(MochiTransformer3DModel(**MOCHI_CONFIG), MOCHI)
    layers = {name: tuple(module.weight.shape) for name, module in model(MOCHI).named_modules()
              if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name}  # fmt: skip
    lora, kohya = {}, {}
    for name, size in layers.items():
        down, up = pair(3, *size)
        lora |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        flat = "lora_unet_" + name.replace(".", "_")
        kohya |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(1.5)}
    fused = fused_by_diffusers(lora, MOCHI)
    save("diffusers", lora, fused, data=MOCHI)
    base = model(MOCHI).state_dict()
    save("kohya", kohya, {key: base[key] + 0.5 * (value - base[key]) for key, value in fused.items()}, data=MOCHI)
    make_peft(("to_k", "add_q_proj", "to_add_out", "net.2"), {"transformer_blocks.1.attn1.to_k": 2}, MOCHI)


def main():
    if sys.argv[1:] != ["mochi"]:
        make_base(WanTransformer3DModel(**CONFIG), DATA)
        for make in (make_native, make_differences, make_kohya, make_diffusers, make_peft):
            make()
    make_mochi()


if __name__ == "__main__":
    main()
