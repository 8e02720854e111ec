"""calibatt for diffusers: video models that skip the part of self-attention which changes nothing, by a plan that was measured once.

>>> import calibatt
>>> plan = calibatt.calibrate(pipe, prompts, output="plan.safetensors", density=0.375, height=480, width=832, num_frames=81)
>>> calibatt.apply(pipe, plan)
>>> video = pipe(prompt, height=480, width=832, num_frames=81).frames[0]
>>> print(calibatt.summary(pipe)); calibatt.restore(pipe)

docs/python.md is the guide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._errors import (
    CalibattWarning,
    Cancelled,
    DeviceError,
    Error,
    FormatError,
    InternalError,
    Mismatch,
    NotFound,
    NumericError,
    Unreadable,
    Unsupported,
    UsageError,
    WriteError,
)
from ._plan import Plan, compile, merge

if TYPE_CHECKING:
    from ._apply import Summary, apply, disabled, restore, summary
    from ._calibrate import calibrate

__all__ = [
    "CalibattWarning", "Cancelled", "DeviceError", "Error", "FormatError", "InternalError", "Mismatch", "NotFound", "NumericError", "Plan",
    "Summary", "Unreadable", "Unsupported", "UsageError", "WriteError", "apply", "calibrate", "compile", "cuda_available", "disabled",
    "merge", "restore", "summary",
]  # fmt: skip

_NEED_TORCH = {"Summary": "_apply", "apply": "_apply", "disabled": "_apply", "restore": "_apply", "summary": "_apply", "calibrate": "_calibrate"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from . import _library

        return _library.loaded().version().decode()
    if name not in _NEED_TORCH:
        raise AttributeError(f"module 'calibatt' has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module("." + _NEED_TORCH[name], __name__)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"calibatt.{name} needs PyTorch: pip install 'calibatt[diffusers]'") from None
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def cuda_available() -> bool:
    """Whether calibatt can compute on a GPU here: a driver that is new enough, and a device of compute capability 8.0 or newer.

    cuda_unavailable_reason() says what is missing.
    """
    return cuda_unavailable_reason() is None


def cuda_unavailable_reason() -> str | None:
    """Why calibatt cannot compute on a GPU here, in one line; None: it can."""
    from . import _library

    try:
        _library.loaded().cuda_available()
    except Error as error:
        return str(error)
    return None
