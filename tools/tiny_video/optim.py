"""Muon for matrices and AdamW for the rest, over f32 master weights.

Muon (Jordan et al., 2024): momentum, then the nearest orthogonal matrix by five Newton-Schulz steps, batched over equal
shapes. Convolution kernels count as [out, in * taps] matrices.
"""

from __future__ import annotations

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """[B, m, n] -> about U V^T of each matrix's singular value decomposition."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    def __init__(self, parameters: list[torch.nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.0):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.groups: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        for p in parameters:
            self.groups.setdefault((p.shape[0], p.numel() // p.shape[0]), []).append(p)
        self.buffers = {
            shape: torch.zeros(len(ps), *shape, device=ps[0].device, dtype=torch.float32) for shape, ps in self.groups.items()
        }

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for shape, parameters in self.groups.items():
            gradient = torch.stack([p.grad.reshape(shape) for p in parameters]).float()
            buffer = self.buffers[shape]
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(torch.lerp(gradient, buffer, self.momentum))
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            updates = [u.reshape(p.shape).to(p.dtype) for u, p in zip(update, parameters)]
            if self.weight_decay:
                torch._foreach_mul_(parameters, 1 - rate * self.weight_decay)
            torch._foreach_add_(parameters, updates, alpha=-scale)


class Optimiser:
    """`muon` and `adamw` take parameter lists; the rates are given at every step, so schedules live with the caller.

    `slow` goes to AdamW at SLOW times its rate: for values whose effect is large.
    """

    SLOW = 0.01

    def __init__(self, muon: list, adamw: list, slow: list = (), betas=(0.9, 0.98), weight_decay: float = 0.0):
        self.muon = Muon(muon, weight_decay=weight_decay)
        fused = bool(adamw) and adamw[0].is_cuda
        groups = [{"params": adamw, "factor": 1.0}] + ([{"params": slow, "factor": self.SLOW}] if slow else [])
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, weight_decay=0.0, fused=fused)
        self.parameters = [*muon, *adamw, *slow]

    def step(self, muon_rate: float, adamw_rate: float, clip: float = 1.0) -> torch.Tensor:
        """Clips the gradients' norm, steps and clears; leaves the weights alone if a gradient is not finite.

        Returns the gradients' norm before clipping, without waiting for the device.
        """
        gradients = [p.grad for p in self.parameters]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        factor = torch.where(norm.isfinite(), (clip / (norm + 1e-6)).clamp(max=1.0), torch.zeros_like(norm))
        for gradient in gradients:
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_mul_(gradients, factor)
        self.muon.step(muon_rate)
        for group in self.adamw.param_groups:
            group["lr"] = adamw_rate * group["factor"]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def state_dict(self) -> dict:
        return {"muon": {f"{m}x{n}": b for (m, n), b in self.muon.buffers.items()}, "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        for (m, n), buffer in self.muon.buffers.items():
            buffer.copy_(state["muon"][f"{m}x{n}"])
        self.adamw.load_state_dict(state["adamw"])


class Average:
    """Exponential moving average of weights, f32, that forgets its start quickly."""

    def __init__(self, modules: list[torch.nn.Module], decay: float):
        self.decay, self.steps = decay, 0
        self.live = [p for module in modules for p in module.parameters()]
        self.shadow = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        torch._foreach_lerp_(self.shadow, self.live, 1 - min(self.decay, (1 + self.steps) / (10 + self.steps)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges live and averaged weights; call again to undo."""
        for live, shadow in zip(self.live, self.shadow):
            keep = live.clone()
            live.copy_(shadow)
            shadow.copy_(keep)
