"""The default model's configuration: diffusers' and transformers' own classes, small numbers.

A 65-frame clip of 256x256 becomes latents [16, 17, 32, 32] (4x8x8) and 17*16*16 = 4352 tokens (patch 1x2x2).
"""

from __future__ import annotations

import torch

NUM_FRAMES = 65
SIZE = 256
FPS = 16
LATENT_FRAMES = 17
LATENT_SIZE = 32
LATENT_CHANNELS = 16

VOCABULARY_SIZE = 1024
PROMPT_TOKENS = 512  # what WanPipeline pads prompts to
TRAIN_PROMPT_TOKENS = 64  # what training computes; the last position stands for the other 449 (train_dit.py)

TRANSFORMER = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=4,
    attention_head_dim=64,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    text_dim=256,
    freq_dim=256,
    ffn_dim=1024,
    num_layers=8,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    eps=1e-6,
    rope_max_seq_len=1024,
)

TEXT_ENCODER = dict(
    vocab_size=VOCABULARY_SIZE,
    d_model=256,
    d_kv=64,
    d_ff=512,
    num_layers=4,
    num_heads=4,
    feed_forward_proj="gated-gelu",
    dropout_rate=0.0,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
    is_encoder_decoder=False,
    use_cache=False,
)

VAE = dict(
    base_dim=32,
    z_dim=LATENT_CHANNELS,
    dim_mult=[1, 2, 4],
    num_res_blocks=1,
    attn_scales=[],
    temperal_downsample=[True, True],
    dropout=0.0,
    is_residual=False,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_temporal=4,
    scale_factor_spatial=8,
    latents_mean=[0.0] * LATENT_CHANNELS,
    latents_std=[1.0] * LATENT_CHANNELS,
)

SCHEDULER = dict(
    num_train_timesteps=1000,
    prediction_type="flow_prediction",
    use_flow_sigmas=True,
    flow_shift=3.0,
    solver_order=2,
    solver_type="bh2",
    lower_order_final=True,
    predict_x0=True,
)


def make_transformer():
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(**TRANSFORMER)


def make_text_encoder():
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**TEXT_ENCODER))


def make_vae(latents_mean=None, latents_std=None):
    from diffusers import AutoencoderKLWan

    values = dict(VAE)
    if latents_mean is not None:
        values["latents_mean"] = [float(v) for v in latents_mean]
        values["latents_std"] = [float(v) for v in latents_std]
    return AutoencoderKLWan(**values)


def make_scheduler(flow_shift: float | None = None):
    from diffusers import UniPCMultistepScheduler

    values = dict(SCHEDULER)
    if flow_shift is not None:
        values["flow_shift"] = flow_shift
    return UniPCMultistepScheduler(**values)


def initialise_transformer(transformer) -> None:
    """Starting weights: Glorot linears, zero biases, blocks that begin near the identity, zero output."""
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    embedder = transformer.condition_embedder
    torch.nn.init.normal_(embedder.time_embedder.linear_1.weight, std=0.02)
    torch.nn.init.normal_(embedder.time_embedder.linear_2.weight, std=0.02)
    torch.nn.init.zeros_(embedder.time_proj.weight)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    for block in transformer.blocks:
        torch.nn.init.normal_(block.scale_shift_table, std=0.02)
        block.scale_shift_table.data[:, [2, 5]] = 0.1  # gates: small, not zero, so that every layer learns at once
    torch.nn.init.normal_(transformer.scale_shift_table, std=0.02)
