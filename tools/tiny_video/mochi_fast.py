"""MochiTransformer3DModel made fast to train: same modules, same numbers, whole batches.

diffusers attends prompt by prompt over the video and the prompt's own tokens. Here a batch's prompts have TRAIN_PROMPT_TOKENS
positions each, and padding is seen by no other token, by one of several kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .compiling import fastest

PROMPT_TOKENS = 256  # what MochiPipeline pads prompts to
TRAIN_PROMPT_TOKENS = 48  # what training computes; captions have at most 43


def _ragged(query, key, value, lengths):
    """Each row as two sequences, so that lengths may differ in a batch of one shape: what counts, and the padding by itself."""
    from torch.nn.attention.varlen import varlen_attn

    rows, size, heads, width = query.shape
    starts = torch.arange(rows, device=query.device, dtype=torch.int32) * size
    ends = starts + lengths.to(torch.int32)
    bounds = torch.cat([torch.stack([starts, ends], dim=1).flatten(), torch.full_like(starts[:1], rows * size)])
    query, key, value = (x.reshape(rows * size, heads, width) for x in (query, key, value))
    return varlen_attn(query, key, value, bounds, bounds, size, size).view(rows, size, heads, width)


def _biased(query, key, value, lengths):
    """Padding masked by a bias. torch chooses the kernel."""
    size = query.shape[1]
    seen = torch.arange(size, device=query.device) < lengths[:, None]
    bias = torch.where(seen, 0.0, -30000.0).to(query.dtype)[:, None, None, :].expand(-1, query.shape[2], size, -1)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)


KERNELS = {"ragged": _ragged, "cudnn": _biased, "efficient": _biased, "any": _biased}
_kernel = ["any"]


@torch.compiler.disable
def _attend(query, key, value, lengths):
    """Outside of compiled code, whose version of some kernels with a bias gave gradients that are not finite."""
    return KERNELS[_kernel[0]](query, key, value, lengths)


def use_attention(name: str) -> None:
    """The kernel from here on, one of KERNELS."""
    _kernel[0] = name
    if name in ("cudnn", "efficient"):
        torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
        torch.backends.cuda.enable_mem_efficient_sdp(True)


def choose_attention() -> str:
    """The fastest of the GPU's kernels that is right, for whole clips."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    size = 4352 + TRAIN_PROMPT_TOKENS
    q, k, v = (torch.randn(32, size, 6, 64, device="cuda", dtype=torch.bfloat16, generator=generator).requires_grad_() for _ in range(3))
    lengths = 4352 + torch.randint(1, TRAIN_PROMPT_TOKENS, (32,), device="cuda", generator=generator)

    exact = _exact(q[:2], k[:2], v[:2], lengths[:2])[:, :4352]
    right: set[str] = set()

    def by(name):
        def call():
            use_attention(name)
            output = KERNELS[name](q, k, v, lengths)
            if name not in right:
                error = float((output[:2, :4352].float() - exact).norm() / exact.norm())
                if not error < 0.02:
                    raise RuntimeError(f"relative error {error:.3g}")
                right.add(name)
            return output

        return call

    return fastest({name: by(name) for name in KERNELS if name != "any"})


@torch.no_grad()
def _exact(query, key, value, lengths):
    seen = torch.arange(query.shape[1], device=query.device) < lengths[:, None]
    logits = torch.einsum("bqhd,bkhd->bhqk", query.float(), key.float()) * query.shape[-1] ** -0.5
    return torch.einsum("bhqk,bkhd->bqhd", logits.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1), value.float())


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE over neighbouring pairs. x: f32 [B, N, heads, D]; cos, sin: [N, heads, D / 2]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class FastProcessor:
    """In the place of diffusers' MochiAttnProcessor2_0."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb=None):
        dtype, tokens = hidden_states.dtype, hidden_states.shape[1]

        def heads(x, layers, norms):
            rows = F.linear(x, torch.cat([layer.weight for layer in layers])).unflatten(-1, (3, attn.heads, -1))
            query, key, value = rows.unbind(2)
            query, key = (F.rms_norm(v.float(), v.shape[-1:], n.weight.float(), n.eps) for v, n in zip((query, key), norms))
            return query, key, value

        query, key, value = heads(hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
        query, key = _rotate(query, *image_rotary_emb), _rotate(key, *image_rotary_emb)
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text = heads(encoder_hidden_states, added, (attn.norm_added_q, attn.norm_added_k))
        query, key, value = (torch.cat([v.to(dtype), t.to(dtype)], dim=1) for v, t in zip((query, key, value), text))
        lengths = tokens + attention_mask.sum(dim=1)
        output = _attend(query, key, value, lengths).flatten(2)
        video = attn.to_out[0](output[:, :tokens])
        return video, (attn.to_add_out(output[:, tokens:]) if hasattr(attn, "to_add_out") else output[:, tokens:])


def make_fast(transformer) -> None:
    """Installs the processor in every block."""
    processor = FastProcessor()
    for block in transformer.transformer_blocks:
        block.attn1.processor = processor


def encode_text(text_encoder, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [B, L] -> hidden states [B, L, width], and which of them are no padding (bool)."""
    mask = ids != 0
    return text_encoder(ids, mask.long()).last_hidden_state, mask
