"""A LoRA of every linear layer of a transformer, trained through the transformer's own weights.

The layers hold W + B A themselves, so that compiled blocks stay as they are: `merge` writes the sum, and
`take_gradients` turns the gradient of a sum into those of B and A.
"""

from __future__ import annotations

import pathlib

import torch
from safetensors.torch import load_file, save_file


class LowRank(torch.nn.Module):
    def __init__(self, transformer, rank: int, seed: int = 0):
        """Starts with B = 0 and A of orthonormal rows. Nothing but the linear layers' weights is trained from here on."""
        super().__init__()
        transformer.requires_grad_(False)
        self.layers = {name: module for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
        self.base = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        generator = torch.Generator().manual_seed(seed)
        down, up = [], []
        for layer in self.layers.values():
            layer.weight.requires_grad_(True)
            rows = min(rank, *layer.weight.shape)
            square = torch.linalg.qr(torch.randn(layer.in_features, rows, generator=generator))[0]
            down.append(torch.nn.Parameter(square.T.contiguous().to(layer.weight.device)))
            up.append(torch.nn.Parameter(torch.zeros(layer.out_features, rows, device=layer.weight.device)))
        self.down, self.up = torch.nn.ParameterList(down), torch.nn.ParameterList(up)

    def _pairs(self):
        return zip(self.layers.items(), self.down, self.up, strict=True)

    @torch.no_grad()
    def merge(self) -> None:
        for (name, layer), down, up in self._pairs():
            torch.addmm(self.base[name], up, down, out=layer.weight.data)

    @torch.no_grad()
    def take_gradients(self) -> None:
        for (_, layer), down, up in self._pairs():
            gradient, layer.weight.grad = layer.weight.grad, None
            up.grad, down.grad = gradient @ down.T, up.T @ gradient

    def save(self, path: pathlib.Path, **metadata: str) -> None:
        """Under diffusers' names, bf16. No alpha, so the strength is 1."""
        tensors = {}
        for (name, _), down, up in self._pairs():
            tensors[f"transformer.{name}.lora_A.weight"] = down.detach().to("cpu", torch.bfloat16).contiguous()
            tensors[f"transformer.{name}.lora_B.weight"] = up.detach().to("cpu", torch.bfloat16).contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata=metadata)
        partial.replace(path)


@torch.no_grad()
def merge_file(transformer, path: pathlib.Path) -> None:
    """Adds a file of `LowRank.save` to a transformer's weights, in f32, and rounds the sums to bf16."""
    tensors = {key.removeprefix("transformer."): value.float() for key, value in load_file(path).items()}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            down, up = (tensors.pop(f"{name}.lora_{part}.weight").to(module.weight.device) for part in "AB")
            module.weight.copy_((module.weight.float() + up @ down).to(torch.bfloat16))
    if tensors:
        raise ValueError(f"{path}: keys of no linear layer: {', '.join(sorted(tensors)[:3])}")
