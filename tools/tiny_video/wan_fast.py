"""WanTransformer3DModel made fast to train: same modules, same numbers, fewer bytes moved.

- one matrix product for queries, keys and values;
- prompts of 64 positions instead of 512. WanPipeline pads with zero rows, which all become the same key and value, and a
  softmax over n equal keys is one key with log(n) added to its logit. The last of our 64 positions stands for 449 of them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .compiling import fastest

PROMPT_TOKENS = 512  # what WanPipeline pads prompts to
TRAIN_PROMPT_TOKENS = 64  # what training computes; the last position stands for the other 449
PADDING_BIAS = math.log(PROMPT_TOKENS - TRAIN_PROMPT_TOKENS + 1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE over neighbouring pairs. x: [B, N, heads, D]; cos, sin: [1, N, 1, D] with each value twice."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class FastProcessor:
    """In the place of diffusers' WanAttnProcessor, for both self- and cross-attention."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        dtype = hidden_states.dtype
        if encoder_hidden_states is None:
            weight = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
            bias = torch.cat([attn.to_q.bias, attn.to_k.bias, attn.to_v.bias])
            query, key, value = F.linear(hidden_states, weight, bias).chunk(3, dim=-1)
        else:
            query = attn.to_q(hidden_states)
            key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        width = query.shape[-1:]
        query = F.rms_norm(query.float(), width, attn.norm_q.weight.float(), attn.norm_q.eps).unflatten(2, (attn.heads, -1))
        key = F.rms_norm(key.float(), width, attn.norm_k.weight.float(), attn.norm_k.eps).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
        query, key = query.to(dtype).transpose(1, 2), key.to(dtype).transpose(1, 2)
        value = value.to(dtype).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        if encoder_hidden_states is None:
            output = F.scaled_dot_product_attention(query, key, value)
        else:
            logits = (query @ key.transpose(2, 3)).float() * query.shape[-1] ** -0.5
            position = torch.arange(logits.shape[-1], device=logits.device)
            logits = logits + torch.where(position == logits.shape[-1] - 1, PADDING_BIAS, 0.0)
            output = logits.softmax(dim=-1).to(dtype) @ value
        return attn.to_out[0](output.transpose(1, 2).flatten(2))


def make_fast(transformer) -> None:
    """Installs the processor in every attention. From here on the text must come from `encode_text`."""
    processor = FastProcessor()
    for block in transformer.blocks:
        block.attn1.set_processor(processor)
        block.attn2.set_processor(processor)


def encode_text(text_encoder, ids: torch.Tensor) -> torch.Tensor:
    """ids [B, 64] -> [B, 64, text_dim], zero where padded, as WanPipeline pads."""
    mask = ids != 0
    return text_encoder(ids, mask.long()).last_hidden_state * mask[..., None]


def use_attention(name: str) -> None:
    """Self-attention by "flash" or "cudnn" from here on."""
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")


def choose_attention() -> str:
    """The faster of the GPU's kernels, for whole clips."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (torch.randn(32, 4, 4352, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def by(backend):
        def call():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return call

    return fastest({"flash": by(SDPBackend.FLASH_ATTENTION), "cudnn": by(SDPBackend.CUDNN_ATTENTION)})
