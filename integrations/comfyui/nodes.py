"""The nodes: Load Plan, Apply Plan, Calibrate."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Callable, Optional, Union

import folder_paths
from comfy_api.latest import ComfyExtension, io

import calibatt

from .calibration import calibrate
from .sampling import apply_plan, log

FOLDER = "calibatt"  # of ComfyUI's models folder
EXTENSION = ".safetensors"
CATEGORY = "model_patches/calibatt"
PlanType = io.Custom("CALIBATT_PLAN")

BY_NOISE_LEVEL, HIGH_NOISE, LOW_NOISE = "by noise level", "high noise", "low noise"
TRANSFORMERS: dict[str, Optional[int]] = {BY_NOISE_LEVEL: None, HIGH_NOISE: 0, LOW_NOISE: 1}
MISMATCH_CHOICES = ["refuse", "dense"]  # not "warn": weights are not compared here

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def plan_names() -> list[str]:
    """Plans, but not the files of a profile beside them."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(EXTENSION) and ".profile" + os.sep not in name]


def plan_path(name: str) -> str:
    return folder_paths.get_full_path_or_raise(FOLDER, name)


def new_plan_path(name: str) -> Path:
    """Only names: a workflow from elsewhere writes nowhere else."""
    name = name.removesuffix(EXTENSION)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise calibatt.UsageError(f"calibatt: {name!r} is not a name for a plan; use letters, digits, '_', '-' and '.'")
    return Path(folder_paths.get_folder_paths(FOLDER)[0]) / (name + EXTENSION)


def settings_of(text: str) -> dict[str, str]:
    """ "token-order=raster block-q=128" → {"token-order": "raster", "block-q": "128"}."""
    settings = {}
    for each in text.split():
        name, equals, value = each.partition("=")
        if not (name and equals and value):
            raise calibatt.UsageError(f"calibatt: {each!r} is not a setting; write name=value with the names of `calibatt calibrate --help`")
        settings[name] = value
    return settings


def teller(node_id: Optional[str]) -> Callable[[str], None]:
    """Into ComfyUI's log, and on the node where there is a browser."""

    def tell(text: str) -> None:
        log(text)
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None and node_id is not None and hasattr(server, "send_progress_text"):
            server.send_progress_text(text, node_id)

    return tell


def patch_schema(name: str, title: str, description: str, inputs: list) -> io.Schema:
    """Of a node that stands between a model and its sampler."""
    return io.Schema(
        node_id="Calibatt" + name,
        display_name=f"{title} (calibatt)",
        category=CATEGORY,
        description=description,
        inputs=[io.Model.Input("model"), *inputs],
        outputs=[io.Model.Output(), io.String.Output(display_name="summary")],
        hidden=[io.Hidden.unique_id],
    )


class LoadPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CalibattLoadPlan",
            display_name="Load Attention Plan (calibatt)",
            category=CATEGORY,
            description="Opens a plan of models/calibatt: which blocks of self-attention are computed.",
            inputs=[
                io.Combo.Input("plan_name", options=plan_names(), tooltip="A file of models/calibatt, made by Calibrate or by 'calibatt calibrate'.")
            ],
            outputs=[PlanType.Output(display_name="plan")],
        )

    @classmethod
    def fingerprint_inputs(cls, plan_name):
        return os.stat(plan_path(plan_name)).st_mtime_ns

    @classmethod
    def execute(cls, plan_name) -> io.NodeOutput:
        return io.NodeOutput(calibatt.Plan(plan_path(plan_name)))


class ApplyPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return patch_schema(
            "ApplyPlan",
            "Apply Attention Plan",
            "Self-attention by a plan. Wan 2.1, Wan 2.2 and Mochi 1, at the size that the plan was made for.",
            [
                PlanType.Input("plan"),
                io.Combo.Input(
                    "transformer",
                    options=list(TRANSFORMERS),
                    default=BY_NOISE_LEVEL,
                    tooltip="Wan 2.2 A14B: which of its two models this is. Other plans have one.",
                ),
                io.Combo.Input(
                    "on_mismatch",
                    options=MISMATCH_CHOICES,
                    default=MISMATCH_CHOICES[0],
                    tooltip="What to do when the video has another size than the plan: stop, or sample without it.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, on_mismatch=MISMATCH_CHOICES[0]) -> Union[bool, str]:
        """In place of ComfyUI's own look at the list: older workflows have "error" for what is "refuse" now."""
        return on_mismatch in ("error", *MISMATCH_CHOICES) or f"{on_mismatch!r} is none of {', '.join(MISMATCH_CHOICES)}"

    @classmethod
    def execute(cls, model, plan, transformer, on_mismatch) -> io.NodeOutput:
        patched = apply_plan(model, plan, TRANSFORMERS[transformer], on_mismatch, teller(cls.hidden.unique_id))
        return io.NodeOutput(patched, plan.describe())


class Calibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return patch_schema(
            "Calibrate",
            "Calibrate Attention",
            "Samples densely, measures the run's attention, and writes a plan into models/calibatt. Each further run improves it.",
            [
                io.String.Input(
                    "plan_name", default="my_plan", tooltip="The plan becomes models/calibatt/NAME.safetensors, what was measured lies beside it."
                ),
                io.Float.Input("density", default=0.375, min=0.02, max=1.0, step=0.005, tooltip="The share of attention that the plan computes."),
                io.String.Input(
                    "settings", default="", tooltip="name=value …: further settings of 'calibatt calibrate --help', such as token-order=raster."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, plan_name, density, settings) -> io.NodeOutput:
        path = new_plan_path(plan_name)
        patched = calibrate(model, path, density, settings_of(settings), teller(cls.hidden.unique_id))
        return io.NodeOutput(patched, f"sampling with this model is dense, is measured, and writes {path.name} of density {density:g}")


class CalibattExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadPlan, ApplyPlan, Calibrate]


async def comfy_entrypoint() -> CalibattExtension:
    return CalibattExtension()
