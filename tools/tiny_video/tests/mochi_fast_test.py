"""The fast transformer equals diffusers' with prompts padded to 256, whatever their lengths."""

import torch

from tools.tiny_video import mochi
from tools.tiny_video.export import random_parts


@torch.no_grad()
def test_matches_diffusers():
    transformer, text_encoder, _ = random_parts(mochi, 0)
    transformer.eval()
    text_encoder.eval()
    ids = torch.zeros(2, mochi.TRAIN_PROMPT_TOKENS, dtype=torch.long)
    ids[0, :9] = torch.randint(3, 200, (9,))
    ids[0, 9] = 1
    ids[1, 0] = 1  # the empty prompt
    full = torch.zeros(2, mochi.PROMPT_TOKENS, dtype=torch.long)
    full[:, : ids.shape[1]] = ids
    text = mochi.encode_text(text_encoder, full)
    latents, time = torch.randn(2, 12, 3, 6, 8), torch.tensor([700.0, 30.0])
    expected = mochi.call(transformer, latents, time, text)
    mochi.make_fast(transformer)
    actual = mochi.call(transformer, latents, time, mochi.encode_text(text_encoder, ids))
    assert expected.std() > 0.1
    assert torch.allclose(actual, expected, atol=1e-4)


def test_the_text_encoder_starts_from_tiny_wans():
    text_encoder = mochi.make_text_encoder()
    mochi.initialise_text_encoder(text_encoder)
    assert text_encoder.shared.weight is text_encoder.encoder.embed_tokens.weight or torch.equal(
        text_encoder.shared.weight, text_encoder.encoder.embed_tokens.weight
    )
    biased = [name for name in text_encoder.state_dict() if "relative_attention_bias" in name]
    assert biased == ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    assert text_encoder.encoder.final_layer_norm.weight.std() > 0.01
