"""Wan 2.1, as models/tiny-wan: diffusers' and transformers' own classes, small numbers.

A 65-frame clip of 256x256 becomes latents [16, 17, 32, 32] (4x8x8) and 17*16*16 = 4352 tokens (patch 1x2x2).
"""

from __future__ import annotations

import pathlib

import torch

from .parts import text_encoder_settings, with_statistics
from .wan_fast import PROMPT_TOKENS, TRAIN_PROMPT_TOKENS, choose_attention, encode_text, make_fast, use_attention
from .wan_vae import WholeClip

__all__ = ["PROMPT_TOKENS", "TRAIN_PROMPT_TOKENS", "WholeClip", "choose_attention", "encode_text", "make_fast", "use_attention"]

FOLDER = pathlib.Path("models/tiny-wan")
NUM_FRAMES = 65
FRAMES_PER_LATENT = 4
LATENT_FRAMES = 17
LATENT_CHANNELS = 16
SENTENCEPIECE = None  # the tokenizer is made by tokenizer.py
SETTING = "20,4,5"  # steps, guidance, flow shift

# Training of the autoencoder: (share of the stage's time until which it applies, [(frames, pixels, batch), ...] taken in turn)
VAE_PHASES = ((0.60, [(17, 128, 32)]), (1.00, [(17, 256, 8), (17, 128, 32), (65, 256, 2)]))
TINY_VAE_PHASES = ((0.5, [(5, 32, 2)]), (1.0, [(9, 64, 1)]))
TINY_FRAMES = 9
VAE_RESERVE = 16.0  # seconds for its statistics and last validation

# Latent frames -> batch, shift of the noise levels (more tokens, more redundancy, more noise), clips in the pool.
KINDS = {1: (512, 2.0, 12288), 5: (160, 2.5, 2048), 17: (48, 3.0, 3072)}
TINY_KINDS = {1: (4, 2.0, 8), 3: (2, 3.0, 4)}
# (seconds of this stage until which it applies, kinds taken in turn)
PHASES = ((40, (1,)), (140, (5, 5, 5, 1)), (1e9, (17, 17, 17, 17, 17, 1, 17, 17, 17, 17, 17, 5)))
REFRESH = 16  # clips drawn at once
REFRESH_EVERY = {1: 2, 5: 8, 17: 8}  # steps of a kind

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

TEXT_ENCODER = text_encoder_settings(num_layers=4)

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


MODEL_INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.42.1",
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def make_transformer():
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(**TRANSFORMER)


def make_text_encoder():
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**TEXT_ENCODER))


def make_vae(latents_mean=None, latents_std=None):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**with_statistics(VAE, latents_mean, latents_std))


def make_scheduler(flow_shift: float | None = None):
    """Of a sampling setting's third number, or the shift that training's first tries used."""
    from diffusers import UniPCMultistepScheduler

    values = dict(SCHEDULER)
    if flow_shift is not None:
        values["flow_shift"] = flow_shift
    return UniPCMultistepScheduler(**values)


def set_timesteps(scheduler, steps: int, device) -> None:
    scheduler.set_timesteps(steps, device=device)


def timestep(sigma: torch.Tensor) -> torch.Tensor:
    """What the transformer is told of the noise level sigma in x = (1 - sigma) latents + sigma noise."""
    return 1000 * sigma


def target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the transformer predicts."""
    return noise - latents


def call(transformer, noisy: torch.Tensor, time: torch.Tensor, text) -> torch.Tensor:
    """text: from encode_text."""
    return transformer(noisy, time, text, return_dict=False)[0]


def blocks(transformer):
    return transformer.blocks


def split(transformer, text_encoder) -> tuple[list, list, list]:
    """Parameters for Muon (the blocks' matrices), for AdamW (the rest), and for AdamW at a small rate (none)."""
    named = [*transformer.blocks.named_parameters(), *text_encoder.encoder.named_parameters()]
    matrices = [p for name, p in named if p.dim() == 2 and "embed" not in name and "relative" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for m in (transformer, text_encoder) for p in m.parameters() if id(p) not in chosen]
    return matrices, rest, []


def vae_split(vae) -> tuple[list, list]:
    """Parameters for Muon (all kernels but the first and the last) and for AdamW."""
    edge = {id(vae.encoder.conv_in.weight), id(vae.decoder.conv_out.weight)}
    kernels = [p for name, p in vae.named_parameters() if p.dim() >= 4 and "gamma" not in name and id(p) not in edge]
    return kernels, [p for p in vae.parameters() if id(p) not in {id(k) for k in kernels}]


def initialise_vae(vae) -> None:
    torch.nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -4.0)  # little posterior noise at the start


def initialise_text_encoder(text_encoder) -> None:
    torch.nn.init.normal_(text_encoder.shared.weight, std=0.3)


def unsettle(transformer) -> None:
    """Gives random values to what starts at zero, for tests that must see every weight."""
    torch.nn.init.xavier_uniform_(transformer.proj_out.weight)
    torch.nn.init.normal_(transformer.condition_embedder.time_proj.weight, std=0.02)


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
