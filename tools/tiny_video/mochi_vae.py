"""AutoencoderKLMochi over a whole clip, fast to train: the same modules and numbers as diffusers' own pass.

Memory is channels-last throughout, so that linear layers and group norms see rows of channels; each norm with its
activation is one compiled kernel, for any number of frames and pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

ATTENTION_ROWS = 2**15  # at once; more are too many for the GPU's kernels


def _norm_act(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, act: bool) -> torch.Tensor:
    """Group norm of each frame, f32 inside, then SiLU if `act`. rows: [frames, pixels, C]."""
    n, pixels, channels = rows.shape
    wide = rows.float().view(n, pixels, groups, channels // groups)
    mean = wide.mean(dim=(1, 3), keepdim=True)
    variance = wide.square().mean(dim=(1, 3), keepdim=True) - mean.square()
    y = ((wide - mean) * torch.rsqrt(variance.clamp_min(0) + eps)).view(n, pixels, channels) * weight.float() + bias.float()
    return (F.silu(y) if act else y).to(rows.dtype)


def _features(rows: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """FourierFeatures and one zero channel, which makes rows of 16. rows: f32 [N, 3]."""
    angle = (rows[:, :, None] * frequencies).flatten(1)
    return torch.cat([rows, torch.sin(angle), torch.cos(angle), torch.zeros_like(rows[:, :1])], dim=1)


class _Replicate(torch.autograd.Function):
    """Repeats the first frame `front` times and the border pixels once; keeps memory channels-last. x: [B, T, H, W, C]."""

    @staticmethod
    def forward(context, x, front: int, border: int):
        context.front, context.border = front, border
        b, t, h, w, c = x.shape
        y = x.new_empty(b, t + front, h + 2 * border, w + 2 * border, c)
        y[:, front:, border : border + h, border : border + w] = x
        if front:
            y[:, :front, border : border + h, border : border + w] = x[:, :1]
        if border:
            y[:, :, 0, 1:-1], y[:, :, -1, 1:-1] = y[:, :, 1, 1:-1], y[:, :, -2, 1:-1]
            y[:, :, :, 0], y[:, :, :, -1] = y[:, :, :, 1], y[:, :, :, -2]
        return y

    @staticmethod
    def backward(context, gradient):
        front, border = context.front, context.border
        g = gradient.clone()
        if border:
            g[:, :, :, 1] += g[:, :, :, 0]
            g[:, :, :, -2] += g[:, :, :, -1]
            g[:, :, 1] += g[:, :, 0]
            g[:, :, -2] += g[:, :, -1]
            g = g[:, :, 1:-1, 1:-1]
        first = g[:, : front + 1].sum(dim=1, keepdim=True)
        g = torch.cat([first, g[:, front + 1 :]], dim=1)
        return g, None, None


class WholeClip:
    """encode: [B, 3, 1+6k, H, W] in [-1, 1] -> mean, logvar [B, 12, 1+k, H/8, W/8]; decode: the reverse, not clamped."""

    def __init__(self, vae, compiled: bool = False):
        self.vae, self.compiled = vae, compiled
        torch._dynamo.config.recompile_limit = 64  # one version per channel count, with and without gradients
        self.rows = torch.compile(_norm_act) if compiled else _norm_act
        self.features = torch.compile(_features) if compiled else _features

    # Inside, x is [B, T, H, W, C].

    def norm(self, norm, x, act: bool = True):
        b, t, h, w, c = x.shape
        rows, layer = x.reshape(b * t, h * w, c), norm.norm_layer
        if self.compiled:
            torch._dynamo.mark_dynamic(rows, 0)
            torch._dynamo.mark_dynamic(rows, 1)
        return self.rows(rows, layer.weight, layer.bias, layer.num_groups, layer.eps, act).view(b, t, h, w, c)

    def conv(self, layer, x):
        x = _Replicate.apply(x, layer.time_pad, layer.height_pad).permute(0, 4, 1, 2, 3)
        return F.conv3d(x, layer.conv.weight, layer.conv.bias, layer.conv.stride).permute(0, 2, 3, 4, 1)

    def residual(self, block, x):
        h = self.conv(block.conv1, self.norm(block.norm1, x))
        return x + self.conv(block.conv2, self.norm(block.norm2, h))

    def attend(self, norm, attention, x):
        """Over the frames of each pixel, causal."""
        b, t, h, w, c = x.shape
        rows = self.norm(norm, x, act=False).permute(0, 2, 3, 1, 4).reshape(b * h * w, t, c)
        rows = torch.cat([attention(part) for part in rows.split(ATTENTION_ROWS)])
        return x + rows.view(b, h, w, t, c).permute(0, 3, 1, 2, 4)

    def level(self, block, x):
        """Residual blocks, each followed by attention where there is one (never in the decoder)."""
        norms, attentions = getattr(block, "norms", ()), getattr(block, "attentions", ())
        for index, resnet in enumerate(block.resnets):
            x = self.residual(resnet, x)
            if len(attentions) and attentions[index] is not None:
                x = self.attend(norms[index], attentions[index], x)
        return x

    def expand(self, block, x):
        """A linear layer to more channels, which become frames and pixels."""
        b, t, h, w, _ = x.shape
        st, s = block.temporal_expansion, block.spatial_expansion
        # Its outputs come as (channel, frame, row, column); channels last makes the copy below one of whole rows.
        weight = block.proj.weight.unflatten(0, (-1, st, s, s)).permute(1, 2, 3, 0, 4).flatten(0, 3)
        bias = block.proj.bias.unflatten(0, (-1, st, s, s)).permute(1, 2, 3, 0).flatten()
        x = F.linear(x, weight, bias).unflatten(-1, (st, s, s, -1))
        return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t * st, h * s, w * s, -1)

    def encode(self, video):
        encoder = self.vae.encoder
        x = video.permute(0, 2, 3, 4, 1).float().contiguous()
        rows = x.view(-1, 3)
        if self.compiled:
            torch._dynamo.mark_dynamic(rows, 0)
        features = encoder.fourier_features
        powers = torch.arange(features.start, features.stop, features.step, device=x.device, dtype=torch.float32)
        x = self.features(rows, torch.pow(2.0, powers) * (2 * torch.pi)).view(*x.shape[:-1], 16)
        x = F.linear(x, F.pad(encoder.proj_in.weight, (0, 1)), encoder.proj_in.bias)
        x = self.level(encoder.block_in, x)
        for block in encoder.down_blocks:
            x = self.level(block, self.conv(block.conv_in, x))
        x = self.norm(encoder.norm_out, self.level(encoder.block_out, x))
        return F.linear(x, encoder.proj_out.weight).permute(0, 4, 1, 2, 3).chunk(2, dim=1)

    def decode(self, latents):
        decoder = self.vae.decoder
        x = F.linear(latents.permute(0, 2, 3, 4, 1), decoder.conv_in.weight.flatten(1), decoder.conv_in.bias)
        x = self.level(decoder.block_in, x)
        for block in decoder.up_blocks:
            x = self.expand(block, self.level(block, x))
        x = F.silu(self.level(decoder.block_out, x))
        x = F.linear(x, F.pad(decoder.proj_out.weight, (0, 0, 0, 5)), F.pad(decoder.proj_out.bias, (0, 5)))[..., :3]
        return x.permute(0, 4, 1, 2, 3)[:, :, self.vae.temporal_compression_ratio - 1 :]
