"""What of ComfyUI's video transformers calibatt has to know: where layers begin, and where tokens can be reordered.

ComfyUI shares one transformer between all clones of a model. Hooks are therefore there only while a model that has
the Apply Plan or Calibrate node samples, and are gone when that run ends, however it ends.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

import torch

from calibatt import Unsupported

# A compiled transformer (torch.compile) breaks its graph here instead of tracing what is not tensor arithmetic.
untraced = torch.compiler.disable


def require_tokens(found: int, expected: int) -> None:
    if found != expected:
        raise Unsupported(
            f"calibatt: the blocks have {found} tokens, and the video has {expected}: reference images and added frames do not combine with a plan"
        )


def _reordered(tensor: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    require_tokens(tensor.shape[dim], len(index))
    return tensor.index_select(dim, index.to(tensor.device))


@dataclasses.dataclass(frozen=True)
class BlockInput:
    """What calibration must know of a block beside its attention: residual += gate ⊙ (W_o · heads)."""

    residual: torch.Tensor  # [B, tokens, channels], before the addition
    modulation: torch.Tensor  # as the block received it


class Transformer:
    """One of ComfyUI's transformers. Grids are (frames, height, width) in tokens."""

    frames_per_latent: int  # video frames that a latent frame stands for
    joint = False  # text stands behind the video in q, k and v
    normalised_output = False  # residual += gate ⊙ rms_norm(W_o · heads)

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.blocks = list(module.blocks)

    @property
    def num_heads(self) -> int:
        return self.module.num_heads

    def self_attention(self, block: torch.nn.Module) -> torch.nn.Module:
        raise NotImplementedError

    def token_hooks(self, order: torch.Tensor, inverse: torch.Tensor) -> list[Callable[[], Any]]:
        """Adds the hooks that keep tokens in `order` between the first and the last block; gives their removers."""
        raise NotImplementedError


class Wan(Transformer):
    """comfy.ldm.wan.model.WanModel: Wan 2.1 (text and image to video), Wan 2.2 A14B and TI2V-5B."""

    frames_per_latent = 4

    @property
    def head_dim(self) -> int:
        return self.module.dim // self.module.num_heads

    def grid(self, latent: torch.Size) -> tuple[int, int, int]:
        return tuple(-(-size // patch) for size, patch in zip(latent[-3:], self.module.patch_size))

    def self_attention(self, block):
        return block.self_attn

    def output_projection(self, block):
        return block.self_attn.o

    def block_input(self, args, kwargs) -> BlockInput:
        return BlockInput(args[0], kwargs["e"] if "e" in kwargs else args[1])

    def gate(self, block, modulation: torch.Tensor, sample: int) -> torch.Tensor:
        """[channels], float. `modulation` is [B, 6, channels]."""
        own = block.modulation.to(device=modulation.device, dtype=modulation.dtype)
        if modulation.ndim == 4:
            if modulation.shape[1] != 1:
                raise Unsupported(
                    "calibatt: Calibrate does not take image-to-video runs whose frames have noise levels of their own"
                    " (Wan 2.2 TI2V-5B with a start image); calibrate with text alone"
                )
            modulation = modulation[:, 0]
        return (own + modulation[sample])[0, 2].float().contiguous()

    def token_hooks(self, order, inverse):
        def embedded(_module, _args, out):  # [B, channels, frames, height, width], flattened after this
            return _reordered(out.flatten(2), 2, order).view(out.shape)

        def rotary(_module, _args, out):  # [1, 1, tokens, …]
            return _reordered(out, 2, order)

        def projected(_module, _args, out):  # [B, tokens, …]
            return _reordered(out, 1, inverse)

        places = ((self.module.patch_embedding, embedded), (self.module.rope_embedder, rotary), (self.module.head, projected))
        return [place.register_forward_hook(hook).remove for place, hook in places]


class Mochi(Transformer):
    """comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint: Mochi 1. Text stands behind the video."""

    joint = True
    frames_per_latent = 6
    normalised_output = True

    @property
    def head_dim(self) -> int:
        return self.module.head_dim

    def grid(self, latent: torch.Size) -> tuple[int, int, int]:
        frames, height, width = latent[-3:]
        return frames, height // self.module.patch_size, width // self.module.patch_size

    def self_attention(self, block):
        return block.attn

    def output_projection(self, block):
        return block.attn.proj_x

    def block_input(self, args, kwargs) -> BlockInput:
        return BlockInput(args[0], args[1])

    def gate(self, block, modulation: torch.Tensor, sample: int) -> torch.Tensor:
        """[channels], float; tanh of the second quarter of what the block makes of the time embedding."""
        made = block.mod_x(torch.nn.functional.silu(modulation[sample : sample + 1]))
        return torch.tanh(made.chunk(4, dim=1)[1])[0].float().contiguous()

    def token_hooks(self, order, inverse):
        ordered: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # the same two tables for all blocks of a forward

        def embedded(_module, _args, out):  # [B, tokens, channels]
            return _reordered(out, 1, order)

        def rotary(_module, args, kwargs):  # [tokens, heads, head_dim / 2]
            for name in ("rope_cos", "rope_sin"):
                table = kwargs[name]
                if name not in ordered or ordered[name][0] is not table:
                    ordered[name] = (table, _reordered(table, 0, order))
                kwargs[name] = ordered[name][1]
            return args, kwargs

        def projected(_module, _args, out):
            return _reordered(out, 1, inverse)

        return [
            self.module.x_embedder.register_forward_hook(embedded).remove,
            self.module.final_layer.register_forward_hook(projected).remove,
            *(block.register_forward_pre_hook(rotary, with_kwargs=True).remove for block in self.blocks),
        ]


KNOWN = {"WanModel": Wan, "AsymmDiTJoint": Mochi}


def transformer_of(module: torch.nn.Module) -> Transformer:
    """Throws Unsupported, naming what the model holds. Models derived from Wan (VACE, Camera, S2V, …) feed their blocks
    with more than the video's tokens and are refused by name."""
    module = getattr(module, "_orig_mod", module)  # torch.compile
    known = KNOWN.get(type(module).__name__)
    if known is None:
        raise Unsupported(
            f"calibatt: this model's transformer is {type(module).__name__}; supported are Wan 2.1, Wan 2.2 (WanModel) and Mochi 1 (AsymmDiTJoint)"
        )
    return known(module)
