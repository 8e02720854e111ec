"""calibatt for ComfyUI: self-attention of video models by a calibrated plan. See README.md."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
