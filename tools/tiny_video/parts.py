"""What the small models' architectures share."""

from __future__ import annotations

VOCABULARY_SIZE = 1024


def text_encoder_settings(num_layers: int) -> dict:
    """Of a T5 or UMT5 encoder of this depth."""
    return dict(
        vocab_size=VOCABULARY_SIZE,
        d_model=256,
        d_kv=64,
        d_ff=512,
        num_layers=num_layers,
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


def with_statistics(vae_settings: dict, mean, std) -> dict:
    """An autoencoder's settings with the mean and deviation of its latents; None: as they are."""
    if mean is None:
        return dict(vae_settings)
    return dict(vae_settings, latents_mean=[float(v) for v in mean], latents_std=[float(v) for v in std])
