"""What a transformer's graph calls: three operations that torch.compile does not look into.

Which step, session and masks are meant is looked up when an operation runs, by its `site`: a 0-dim int64 tensor on the CPU that
stands for a transformer and a layer. A tensor, since torch.compile would compile a Python number in, once for each layer.
"""

import weakref
from typing import TYPE_CHECKING, Any, Callable, Optional

import torch

from . import _errors

if TYPE_CHECKING:
    from ._runtime import Binding

LAYER_BITS = 16

_bindings: "weakref.WeakValueDictionary[int, Binding]" = weakref.WeakValueDictionary()
_count = 0


def register(binding: "Binding") -> int:
    """A number for this binding, that no other ever gets."""
    global _count
    _count += 1
    _bindings[_count] = binding
    return _count


def site_tensor(number: int, layer: int) -> torch.Tensor:
    return torch.tensor(number << LAYER_BITS | layer, dtype=torch.int64)


def _binding_of(site: torch.Tensor) -> "tuple[Binding, int]":
    code = int(site)
    binding = _bindings.get(code >> LAYER_BITS)
    if binding is None or not binding.attached:
        raise _errors.Error("a compiled transformer still calls a plan that calibatt.restore took away; call torch._dynamo.reset() and compile again")
    return binding, code & (1 << LAYER_BITS) - 1


def _operation(name: str) -> Callable[[Any], Any]:
    """torch.library.custom_op; CUDA graphs leave it out, since it looks up what to do."""
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
    try:
        return torch.library.custom_op("calibatt::" + name, mutates_args=(), tags=(unsafe,) if unsafe else ())
    except TypeError:  # torch 2.4 to 2.6 have no tags here
        return torch.library.custom_op("calibatt::" + name, mutates_args=())


@_operation("arrange")
def arrange(
    x: torch.Tensor, site: torch.Tensor, frames: int, height: int, width: int, begin: bool, back: bool, timestep: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """x, [batch, tokens, …], from raster order to the plan's, or back. begin: a forward of this grid begins here, and of this timestep, [batch],
    where nothing else says which step it is.
    """
    binding, _ = _binding_of(site)
    if begin:
        binding.begin_forward((frames, height, width), x, timestep)
    return binding.arrange(x, back)


@arrange.register_fake
def _(x: torch.Tensor, site: Any, frames: int, height: int, width: int, begin: bool, back: bool, timestep: Any = None) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_operation("attend")
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, heads, head_dim] each."""
    binding, layer = _binding_of(site)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    binding.attend(layer, q, k, v, out)
    return out


@attend.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@_operation("attend_joint")
def attend_joint(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, text_q: torch.Tensor, text_k: torch.Tensor, text_v: torch.Tensor, text_mask: torch.Tensor,
    site: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Video [batch, tokens, heads, head_dim] and text [batch, text tokens, heads, head_dim] attend to both; text_mask [batch, text tokens]
    says which text there is. → [batch, tokens + text tokens, heads, head_dim]: the video, the text that is there, zeros.
    """
    binding, layer = _binding_of(site)
    return binding.attend_joint(layer, (q, k, v), (text_q, text_k, text_v), text_mask)


@attend_joint.register_fake
def _(q: Any, k: Any, v: Any, text_q: Any, text_k: Any, text_v: Any, text_mask: Any, site: Any) -> torch.Tensor:
    batch, tokens, heads, head_dim = q.shape
    return q.new_empty((batch, tokens + text_q.shape[1], heads, head_dim))
