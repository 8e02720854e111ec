"""Mochi 1, as models/tiny-mochi: diffusers' and transformers' own classes, small numbers.

A 97-frame clip of 256x256 becomes latents [12, 17, 32, 32] (6x8x8) and 17*16*16 = 4352 tokens (patch 2x2), which attend
jointly with the prompt's tokens.
"""

from __future__ import annotations

import pathlib

import torch

from .mochi_fast import PROMPT_TOKENS, TRAIN_PROMPT_TOKENS, choose_attention, encode_text, make_fast, use_attention
from .mochi_vae import WholeClip
from .parts import text_encoder_settings, with_statistics

__all__ = ["PROMPT_TOKENS", "TRAIN_PROMPT_TOKENS", "WholeClip", "choose_attention", "encode_text", "make_fast", "use_attention"]

FOLDER = pathlib.Path("models/tiny-mochi")
NUM_FRAMES = 97
FRAMES_PER_LATENT = 6
LATENT_FRAMES = 17
LATENT_CHANNELS = 12
# tiny-wan's tokenizer, and its text encoder to start from: the captions are the same.
TINY_WAN = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny-wan"
SENTENCEPIECE = TINY_WAN / "tokenizer" / "spiece.model"
SETTING = "32,4.5"  # steps, guidance

# Training of the autoencoder: (share of the stage's time until which it applies, [(frames, pixels, batch), ...] taken in turn)
VAE_PHASES = ((0.50, [(25, 128, 10)]), (1.00, [(25, 256, 3), (25, 128, 10), (97, 256, 1)]))
TINY_VAE_PHASES = ((0.5, [(7, 32, 2)]), (1.0, [(13, 64, 1)]))
TINY_FRAMES = 13
VAE_RESERVE = 24.0  # seconds for its statistics and last validation

# Latent frames -> batch, shift of the noise levels (more tokens, more redundancy, more noise), clips in the pool.
KINDS = {1: (512, 2.0, 6144), 5: (160, 2.5, 1536), 17: (48, 3.0, 1536)}
TINY_KINDS = {1: (4, 2.0, 8), 3: (2, 3.0, 4)}
# (seconds of this stage until which it applies, kinds taken in turn)
PHASES = ((30, (1,)), (110, (5, 5, 5, 1)), (1e9, (17, 17, 17, 17, 17, 1, 17, 17, 17, 17, 17, 5)))
REFRESH = 16  # clips drawn at once
REFRESH_EVERY = {1: 4, 5: 12, 17: 12}  # steps of a kind

TRANSFORMER = dict(
    patch_size=2,
    num_attention_heads=6,
    attention_head_dim=64,
    num_layers=6,
    pooled_projection_dim=96,
    in_channels=LATENT_CHANNELS,
    qk_norm="rms_norm",
    text_embed_dim=256,
    time_embed_dim=256,
    activation_fn="swiglu",
    max_sequence_length=PROMPT_TOKENS,
)

TEXT_ENCODER = text_encoder_settings(num_layers=3)

VAE = dict(
    in_channels=15,
    out_channels=3,
    encoder_block_out_channels=(32, 32, 64, 96),
    decoder_block_out_channels=(32, 64, 96, 128),
    latent_channels=LATENT_CHANNELS,
    layers_per_block=(1, 1, 1, 1, 1),
    temporal_expansions=(1, 2, 3),
    spatial_expansions=(2, 2, 2),
    add_attention_block=(False, False, True, True, True),
    latents_mean=[0.0] * LATENT_CHANNELS,
    latents_std=[1.0] * LATENT_CHANNELS,
    scaling_factor=1.0,
)

MODEL_INDEX = {
    "_class_name": "MochiPipeline",
    "_diffusers_version": "0.42.0",
    "force_zeros_for_empty_prompt": False,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "MochiTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLMochi"],
}


def make_transformer():
    from diffusers import MochiTransformer3DModel

    return MochiTransformer3DModel(**TRANSFORMER)


def make_text_encoder():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**TEXT_ENCODER))


def make_vae(latents_mean=None, latents_std=None):
    from diffusers import AutoencoderKLMochi

    return AutoencoderKLMochi(**with_statistics(VAE, latents_mean, latents_std))


def make_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(invert_sigmas=True)


def set_timesteps(scheduler, steps: int, device) -> None:
    """MochiPipeline's own levels: half of the steps at noise above 0.975."""
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    scheduler.set_timesteps(sigmas=linear_quadratic_schedule(steps, 0.025), device=device)
    scheduler.set_begin_index(0)


def timestep(sigma: torch.Tensor) -> torch.Tensor:
    """What the transformer is told of the noise level sigma in x = (1 - sigma) latents + sigma noise."""
    return 1000 * (1 - sigma)


def target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the transformer predicts."""
    return latents - noise


def call(transformer, noisy: torch.Tensor, time: torch.Tensor, text) -> torch.Tensor:
    """text: from encode_text."""
    hidden, mask = text
    return transformer(noisy, hidden, time, mask, return_dict=False)[0]


def blocks(transformer):
    return transformer.transformer_blocks


def split(transformer, text_encoder) -> tuple[list, list, list]:
    """Parameters for Muon (matrices of attention and feed-forward), for AdamW (the rest), and for AdamW at a small rate.

    Positions reach 96, so a small change of a frequency turns far tokens a lot.
    """
    named = [*transformer.transformer_blocks.named_parameters(), *text_encoder.encoder.named_parameters()]
    matrices = [p for name, p in named if p.dim() == 2 and not any(part in name for part in ("norm", "embed", "relative"))]
    slow = [transformer.pos_frequencies]
    chosen = {id(p) for p in [*matrices, *slow]}
    rest = [p for m in (transformer, text_encoder) for p in m.parameters() if id(p) not in chosen]
    return matrices, rest, slow


def vae_split(vae) -> tuple[list, list]:
    """Parameters for Muon (kernels and matrices but the first and the last) and for AdamW."""
    edge = [vae.encoder.proj_in, vae.encoder.proj_out, vae.decoder.conv_in, vae.decoder.proj_out]
    edges = {id(layer.weight) for layer in edge}
    kernels = [p for p in vae.parameters() if p.dim() >= 2 and id(p) not in edges]
    return kernels, [p for p in vae.parameters() if id(p) not in {id(k) for k in kernels}]


def initialise_vae(vae) -> None:
    """Little posterior noise at the start: rows that turn the mean of SiLU(normal), 0.2066, into a log variance of -4."""
    weight = vae.encoder.proj_out.weight
    torch.nn.init.constant_(weight[LATENT_CHANNELS:], -4.0 / (0.2066 * weight.shape[1]))


def initialise_text_encoder(text_encoder) -> None:
    """From tiny-wan's, whose layers have a position bias each, where T5's share the first one's."""
    from safetensors.torch import load_file

    theirs = load_file(TINY_WAN / "text_encoder" / "model.safetensors")
    mine = text_encoder.state_dict()
    missing = [name for name in mine if name not in theirs and name != "encoder.embed_tokens.weight"]
    if missing:
        raise ValueError(f"{TINY_WAN / 'text_encoder'} has no {missing[0]}")
    text_encoder.load_state_dict({name: theirs[name].float() for name in mine if name in theirs}, strict=False)


def initialise_transformer(transformer) -> None:
    """Starting weights: Glorot linears, zero biases, blocks that begin near the identity, zero output, axial positions."""
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    patch = transformer.patch_embed.proj
    torch.nn.init.normal_(patch.weight, std=patch.weight[0].numel() ** -0.5)
    torch.nn.init.zeros_(patch.bias)
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            layer = norm.linear if hasattr(norm, "linear") else norm.linear_1
            torch.nn.init.zeros_(layer.weight)
            if layer is not getattr(norm, "linear_1", None):
                layer.bias.data.view(4, -1)[[1, 3]] = 0.3  # gates: small, not zero, so that every layer learns at once
    torch.nn.init.zeros_(transformer.norm_out.linear.weight)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    transformer.pos_frequencies.data.copy_(axial_frequencies(*transformer.pos_frequencies.shape[1:]))


def axial_frequencies(heads: int, pairs: int) -> torch.Tensor:
    """[3, heads, pairs]: each pair turns along one axis, from 2 radians a token down to a slow turn.

    A row or column is 12 units of position away from the next, as MochiRoPE scales a picture of 16x16 tokens.
    """
    rows = pairs * 5 // 16
    frames = pairs - 2 * rows
    result = torch.zeros(3, heads, pairs)
    result[0, :, :frames] = 2.0 * torch.logspace(0, -2, frames)
    result[1, :, frames : frames + rows] = 2.0 / 12 * torch.logspace(0, -1.8, rows)
    result[2, :, frames + rows :] = 2.0 / 12 * torch.logspace(0, -1.8, rows)
    return result


def unsettle(transformer) -> None:
    """Gives random values to what starts at zero, for tests that must see every weight."""
    torch.nn.init.xavier_uniform_(transformer.proj_out.weight)
    torch.nn.init.normal_(transformer.norm_out.linear.weight, std=0.02)
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.normal_((norm.linear if hasattr(norm, "linear") else norm.linear_1).weight, std=0.02)
