"""AutoencoderKLWan over a whole clip at once, for training.

diffusers encodes 1, 4, 4, ... frames and decodes latent frame by latent frame, carrying a cache. The result is that of
causal convolutions over the whole clip, except that the temporal resamplers leave the first frame alone and the
upsampler's convolution never sees it (its history starts with zeros). Written so, one pass gives the same numbers
(tests/whole_clip_test.py) with large kernels only. Modules and state dict stay diffusers' own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify


def _norm_act_rows(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """WanRMS_norm over the last dimension, then SiLU; f32 inside. x: [N, C]."""
    wide = x.float()
    length = wide.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    return F.silu(wide / length * (x.shape[1] ** 0.5) * gamma.float()).to(x.dtype)


class WholeClip:
    """encode: [B, 3, 1+4k, H, W] in [-1, 1] -> mean, logvar [B, 16, 1+k, H/8, W/8]; decode: the reverse, not clamped."""

    def __init__(self, vae, compiled: bool = False):
        self.vae = vae
        self.compiled = compiled
        torch._dynamo.config.recompile_limit = 64  # one version per channel count, with and without gradients
        self.rows = torch.compile(_norm_act_rows) if compiled else _norm_act_rows

    def norm_act(self, x, gamma):
        b, c, t, h, w = x.shape
        rows = x.permute(0, 2, 3, 4, 1).reshape(-1, c)  # no copy: memory is channels last throughout
        if self.compiled:
            torch._dynamo.mark_dynamic(rows, 0)
        return self.rows(rows, gamma.view(c)).view(b, t, h, w, c).permute(0, 4, 1, 2, 3)

    def conv(self, layer, x):
        """A causal convolution: zeros before the first frame."""
        left, _, top, _, front, _ = layer._padding
        if front:
            x = F.pad(x, (0, 0, 0, 0, front, 0))
        return F.conv3d(x, layer.weight, layer.bias, layer.stride, (0, top, left))

    def residual(self, block, x):
        h = x if isinstance(block.conv_shortcut, torch.nn.Identity) else self.conv(block.conv_shortcut, x)
        x = self.conv(block.conv1, self.norm_act(x, block.norm1.gamma))
        x = self.conv(block.conv2, self.norm_act(x, block.norm2.gamma))
        return x + h

    def resample(self, block, x):
        if block.mode == "upsample3d" and x.shape[2] > 1:
            b, c, t, h, w = x.shape
            later = self.conv(block.time_conv, x[:, :, 1:]).permute(0, 2, 3, 4, 1).reshape(b, t - 1, h, w, 2, c)
            later = later.permute(0, 1, 4, 2, 3, 5).reshape(b, 2 * (t - 1), h, w, c)
            x = torch.cat([x[:, :, :1].permute(0, 2, 3, 4, 1), later], dim=1).permute(0, 4, 1, 2, 3)
        b, c, t, h, w = x.shape
        frames = x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w)
        if block.mode.startswith("upsample"):
            frames = F.interpolate(frames, scale_factor=2.0, mode="nearest")
            frames = block.resample[1](frames)
        else:
            frames = block.resample(frames)
        x = frames.view(b, t, *frames.shape[1:]).permute(0, 2, 1, 3, 4)
        if block.mode == "downsample3d" and t > 1:
            later = F.conv3d(x, block.time_conv.weight, block.time_conv.bias, (2, 1, 1))
            x = torch.cat([x[:, :, :1], later], dim=2)
        return x

    def middle(self, block, x):
        x = self.residual(block.resnets[0], x)
        for attention, resnet in zip(block.attentions, block.resnets[1:]):
            x = attention(x).contiguous(memory_format=torch.channels_last_3d)
            x = self.residual(resnet, x)
        return x

    def encode(self, video):
        vae, encoder = self.vae, self.vae.encoder
        x = patchify(video, vae.config.patch_size).contiguous(memory_format=torch.channels_last_3d)
        x = self.conv(encoder.conv_in, x)
        for layer in encoder.down_blocks:
            x = self.resample(layer, x) if hasattr(layer, "resample") else self.residual(layer, x)
        x = self.middle(encoder.mid_block, x)
        x = self.conv(encoder.conv_out, self.norm_act(x, encoder.norm_out.gamma))
        return self.conv(vae.quant_conv, x).chunk(2, dim=1)

    def decode(self, latents):
        vae, decoder = self.vae, self.vae.decoder
        x = self.conv(vae.post_quant_conv, latents.contiguous(memory_format=torch.channels_last_3d))
        x = self.middle(decoder.mid_block, self.conv(decoder.conv_in, x))
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = self.residual(resnet, x)
            if block.upsamplers is not None:
                x = self.resample(block.upsamplers[0], x)
        x = self.conv(decoder.conv_out, self.norm_act(x, decoder.norm_out.gamma))
        return unpatchify(x, vae.config.patch_size)
