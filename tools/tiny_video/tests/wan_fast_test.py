"""The fast transformer equals diffusers' with prompts padded to 512."""

import torch

from tools.tiny_video import wan
from tools.tiny_video.export import random_parts
from tools.tiny_video.wan import encode_text, make_fast


@torch.no_grad()
def test_matches_diffusers():
    transformer, text_encoder, _ = random_parts(wan, 0)
    transformer.eval()
    text_encoder.eval()
    ids = torch.zeros(2, wan.TRAIN_PROMPT_TOKENS, dtype=torch.long)
    ids[0, :9] = torch.randint(3, 200, (9,))
    ids[0, 9] = 1
    ids[1, 0] = 1  # the empty prompt
    full = torch.zeros(2, wan.PROMPT_TOKENS, dtype=torch.long)
    full[:, : ids.shape[1]] = ids
    mask = full != 0
    text = text_encoder(full, mask.long()).last_hidden_state * mask[..., None]
    latents, time = torch.randn(2, 16, 3, 6, 8), torch.tensor([700.0, 30.0])
    expected = transformer(latents, time, text, return_dict=False)[0]
    make_fast(transformer)
    actual = transformer(latents, time, encode_text(text_encoder, ids), return_dict=False)[0]
    assert expected.std() > 0.1
    assert torch.allclose(actual, expected, atol=1e-4)
