"""calibatt_record: a calibration whose prompts somebody else's loop runs (a pipe of diffusers, a sampler of ComfyUI)."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch

from . import _errors, _library
from ._plan import PathLike, setting_list
from ._session import RunFacts, Session, device_index


@dataclass(frozen=True)
class PromptFacts:
    """What one measurement of a profile is told from another by."""

    text: str
    negative_prompt: str = ""
    seed: int = 0


def record(
    profile: PathLike,
    run: RunFacts,
    device: torch.device,
    prompts: Sequence[PromptFacts],
    run_prompt: Callable[[int, Session], float],
    precision: str,
    prompt_range: Tuple[int, int] = (0, 0),
    **settings: Any,
) -> Dict[str, Any]:
    """Measures the prompts that the folder `profile` lacks and adds one file for each, atomically.

    Killed at any moment, the same call goes on where it was.

    Args:
        run: what every prompt's run is like.
        run_prompt: called with a prompt's index and the session through which all its self-attention has to go, from the
            first step to the last; gives the seconds that the transformer took, or 0. What it raises ends the call and
            reaches you, and nothing of that prompt is kept.
        precision: "f32", "bf16" or "fp16": of the run's arithmetic.
        prompt_range: [first, end) of the prompts that this process runs; (0, 0): all of them.
        settings: those of `calibatt calibrate --help` that say what is measured, with _ for -.

    Returns the JSON of calibatt_record (include/calibatt/c_api.h). Raises Mismatch when the folder holds another
    calibration, UsageError, WriteError, NumericError, DeviceError.
    """
    library = _library.loaded()
    struct = run.as_struct(device_index(device))
    listed = (_library.Prompt * max(1, len(prompts)))()
    for entry, prompt in zip(listed, prompts):
        entry.text, entry.negative_prompt = _library.encoded(prompt.text), _library.encoded(prompt.negative_prompt or None)
        entry.seed = prompt.seed
    array, count = setting_list(settings)
    calibration = _library.Calibration(
        struct_size=ctypes.sizeof(_library.Calibration),
        run=ctypes.pointer(struct),
        prompts=listed,
        num_prompts=len(prompts),
        precision=precision.encode(),
        settings=array,
        num_settings=count,
    )
    calibration.first_prompt, calibration.end_prompt = prompt_range
    raised: List[BaseException] = []

    def run_one(_: Any, prompt: int, handle: Any, seconds: Any) -> int:
        session = Session(ctypes.c_void_p(handle), owned=False)
        try:
            seconds[0] = run_prompt(prompt, session)
        except BaseException as error:  # noqa: BLE001 - nothing may pass through the C code
            raised.append(error)
            return 1
        finally:
            session.close()
        return 0

    callback = _library.RunPrompt(run_one)
    try:
        return json.loads(library.text(lambda text: library.record(os.fsencode(profile), ctypes.byref(calibration), callback, None, text)))
    except _errors.Error:
        if raised:
            raise raised[0] from None
        raise
