"""Golden data of the text encoders, from transformers' UMT5EncoderModel and T5EncoderModel with random weights.

    python tools/golden/t5.py

Writes tests/golden/data/t5/<model>/: config.json and the weights as transformers saves them (one file or shards; the
element type differs from model to model), and golden.safetensors: per case <case>.ids (the real tokens) and
<case>.embeddings (their rows), computed in float32 on a padded batch with its attention mask, as diffusers' pipeline does.
Deterministic. Run it again only when the cases change: the C++ test must keep passing on the committed files.
"""

import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data/t5"

COMMON = dict(vocab_size=96, feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False, use_cache=False)
MODELS = {
    # Inner width of the attention (heads · d_kv) equal to d_model, as in tiny-wan.
    "square": (dict(COMMON, d_model=64, d_kv=16, num_heads=4, d_ff=96, num_layers=3), torch.bfloat16, "1GB"),
    # Inner width below d_model, few buckets, in shards.
    "narrow": (dict(COMMON, d_model=72, d_kv=24, num_heads=2, d_ff=80, num_layers=2, relative_attention_num_buckets=12,
                    relative_attention_max_distance=20), torch.float16, "40KB"),
    # Inner width above d_model.
    "wide": (dict(COMMON, d_model=40, d_kv=32, num_heads=3, d_ff=56, num_layers=2), torch.float32, "1GB"),
    # T5 of version 1.1, whose first layer has the position bias of all.
    "first": (dict(COMMON, d_model=56, d_kv=16, num_heads=3, d_ff=88, num_layers=3), torch.bfloat16, "1GB"),
}  # fmt: skip

# Longer than the largest exact distance, than every bucket border, and than max_distance.
LENGTHS = {"one": 1, "short": 7, "long": 150}
PADDED = 160


def randomise(model, dtype, generator):
    """Weights whose attention is neither uniform nor one-hot, although its logits are not scaled."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "layer_norm" in name:
            value = 1 + 0.3 * noise
        elif "relative_attention_bias" in name or "shared" in name:
            value = noise
        elif name.endswith("SelfAttention.q.weight"):
            value = noise * (parameter.shape[1] * model.config.d_kv) ** -0.5
        else:
            value = noise * parameter.shape[1] ** -0.5
        parameter.data = value.to(dtype).float()


@torch.no_grad()
def main():
    for index, (name, (settings, dtype, shard)) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(40 + index)
        model = (T5EncoderModel(T5Config(**settings)) if name == "first" else UMT5EncoderModel(UMT5Config(**settings))).eval()
        randomise(model, dtype, generator)
        golden = {}
        for case, length in LENGTHS.items():
            ids = torch.randint(2, settings["vocab_size"], (length,), generator=generator)
            ids[-1] = 1  # end of sequence
            padded = torch.zeros(1, PADDED, dtype=torch.long)
            padded[0, :length] = ids
            mask = (torch.arange(PADDED) < length).long()[None]
            embeddings = model(padded, attention_mask=mask).last_hidden_state[0, :length]
            golden |= {f"{case}.ids": ids.to(torch.int32), f"{case}.embeddings": embeddings.contiguous()}
            print(f"{name}.{case}: rms {embeddings.square().mean().sqrt():.3f}")
        folder = DATA / name
        shutil.rmtree(folder, ignore_errors=True)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        save_file(golden, folder / "golden.safetensors")


if __name__ == "__main__":
    main()
