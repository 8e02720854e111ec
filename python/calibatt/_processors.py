"""Attention processors: what diffusers' own do, but for the attention itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Tuple

import torch

from . import _errors, _ops  # noqa: F401 - _ops registers torch.ops.calibatt

if TYPE_CHECKING:
    from ._runtime import Switch


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the pairs (x[2i], x[2i + 1]) of each head, at the precision of cos and sin. x: [batch, tokens, heads, head_dim];
    cos, sin: a value for each pair, broadcast over the rest.
    """
    out = torch.empty_like(x)
    pairs, rotated_pairs = x.unflatten(-1, (-1, 2)), out.unflatten(-1, (-1, 2))
    first, second = pairs[..., 0], pairs[..., 1]
    rotated_pairs[..., 0] = first * cos - second * sin  # written by halves: at no time is there a whole copy at the higher precision
    rotated_pairs[..., 1] = first * sin + second * cos
    return out


class _Processor:
    def __init__(self, site: torch.Tensor, switch: "Switch", original: Any):
        self.site, self.switch, self.original = site, switch, original

    # What diffusers' transformer.set_attention_backend and enable_parallelism write to every processor. It is for diffusers' own, which runs
    # where the plan is switched off or taken away.
    @property
    def _attention_backend(self) -> Any:
        return getattr(self.original, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.original, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.original._parallel_config = config

    def require_alone(self) -> None:
        if self._parallel_config is not None:
            raise _errors.Unsupported("a plan cannot be combined with context parallelism; call calibatt.restore(pipe), or load the pipe without it")


class WanProcessor(_Processor):
    """Self-attention of WanTransformer3DModel by a session."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        rotary_emb: Optional[Tuple[torch.Tensor, torch.Tensor]] = None,
    ) -> torch.Tensor:
        if not self.switch.on:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        self.require_alone()
        if attention_mask is not None or encoder_hidden_states is not None:
            raise _errors.Unsupported("a plan is for self-attention without a mask, and this call has a mask or other keys; call calibatt.restore(pipe)")
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        if rotary_emb is not None:
            cos, sin = rotary_emb[0][..., 0::2], rotary_emb[1][..., 1::2]  # each value stands twice
            q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        out = torch.ops.calibatt.attend(q, k, v, self.site).flatten(2)
        for layer in attn.to_out:
            out = layer(out)
        return out


class MochiProcessor(_Processor):
    """Joint attention of MochiTransformer3DModel by a session."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: Optional[Tuple[torch.Tensor, torch.Tensor]] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        if not self.switch.on:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb=image_rotary_emb)
        self.require_alone()

        def heads(linear: Any, x: torch.Tensor, norm: Any = None) -> torch.Tensor:
            x = linear(x).unflatten(2, (attn.heads, -1))
            return x if norm is None else norm(x)

        q, k, v = heads(attn.to_q, hidden_states, attn.norm_q), heads(attn.to_k, hidden_states, attn.norm_k), heads(attn.to_v, hidden_states)
        text = encoder_hidden_states
        text_q, text_k = heads(attn.add_q_proj, text, attn.norm_added_q), heads(attn.add_k_proj, text, attn.norm_added_k)
        if image_rotary_emb is not None:
            q, k = rotated(q, *image_rotary_emb), rotated(k, *image_rotary_emb)
        out = torch.ops.calibatt.attend_joint(q, k, v, text_q, text_k, heads(attn.add_v_proj, text), attention_mask, self.site).flatten(2)
        video, text = out.split_with_sizes((q.shape[1], text_q.shape[1]), dim=1)
        for layer in attn.to_out:
            video = layer(video)
        return video, attn.to_add_out(text) if hasattr(attn, "to_add_out") else text
