"""The weights that a transformer has in memory: whether they are those of its folder, and a digest that tells them from others.

One row of each tensor is looked at, since a model has tens of gigabytes: that tells other weights, fused LoRAs and fine-tuned layers, but
not a value changed here and there.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch

#: Folders hold float32, float16 or bfloat16, and the precision in memory may have been any of them since.
_RELATIVE, _ABSOLUTE = torch.finfo(torch.bfloat16).eps / 2, torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps / 2


def weights(transformer: Any) -> Iterator[Tuple[str, torch.Tensor]]:
    """Every tensor by the name that it has in a folder. LoRAs are left out, and what is nowhere in memory."""
    for path, module in transformer.named_modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            full = f"{path}.{name}" if path else name
            if ".lora_" in full or name in getattr(module, "_non_persistent_buffers_set", ()):
                continue
            if value.device.type == "meta":  # accelerate keeps it elsewhere
                stored = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
                if stored is None:
                    continue
                value = stored[name]
            yield full.replace(".base_layer", "").replace("_orig_mod.", ""), value


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether its elements are the weights: no packed or quantised ones."""
    return tensor.is_floating_point() and type(tensor.data) is torch.Tensor


def _row(tensor: Any, name: str, shape: Any) -> torch.Tensor:
    """One row, the same of every tensor of that name and shape, in host memory."""
    if not shape:
        return tensor[...].detach().cpu()
    index = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % shape[0]
    return tensor[index : index + 1].detach().cpu()


def changed_tensor(transformer: Any, files: List[Path]) -> Optional[str]:
    """The first tensor whose row in memory is not what the files say, rounded to the precision in memory; None: all seem to be the same."""
    from safetensors import safe_open

    here = dict(weights(transformer))
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                found = here.get(name)
                if found is None or not is_plain(found):
                    continue
                stored = file.get_slice(name)
                if list(stored.get_shape()) != list(found.shape):
                    return name
                if not _agree(_row(found, name, found.shape), _row(stored, name, found.shape)):
                    return name
    return None


def _agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    info = torch.finfo(ours.dtype)
    relative, absolute = max(_RELATIVE, info.eps / 2), max(_ABSOLUTE, info.smallest_normal * info.eps / 2)
    return torch.allclose(ours.float(), theirs.float(), rtol=1.01 * relative, atol=1.01 * absolute, equal_nan=True)


def digest(transformer: Any) -> str:
    """Of all weights and of the LoRAs that are active, whatever these are called, with their scales."""
    whole = hashlib.sha256()
    for name, value in sorted(weights(transformer), key=lambda each: each[0]):
        _add(whole, name, value)
    for lora in sorted(_lora_digests(transformer)):
        whole.update(lora)
    return whole.hexdigest()[:32]


def _add(digest: Any, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tuple(tensor.shape)} ".encode())
    if is_plain(tensor):  # as bfloat16, in which a cast transformer is the same
        digest.update(_row(tensor, name, tensor.shape).to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    elif type(tensor.data) is torch.Tensor:
        digest.update(_row(tensor, name, tensor.shape).contiguous().view(torch.uint8).numpy().tobytes())


def _lora_digests(transformer: Any) -> List[bytes]:
    """Of each adapter that is active and not merged into the weights."""
    digests: Dict[str, Any] = {}
    for path, module in transformer.named_modules():
        scaling = getattr(module, "scaling", None)
        if not isinstance(scaling, dict) or getattr(module, "disable_adapters", False):
            continue
        for adapter in module.active_adapters:
            if adapter not in scaling or adapter in module.merged_adapters or not math.isfinite(scaling[adapter]):
                continue
            own = digests.setdefault(adapter, hashlib.sha256())
            own.update(f"{path} {scaling[adapter]:.9g} ".encode())
            for name, value in module.named_parameters():
                parts = name.split(".")
                if parts[0].startswith("lora_") and adapter in parts[1:2]:
                    _add(own, ".".join([parts[0], *parts[2:]]), value)
    return [each.digest() for each in digests.values()]
