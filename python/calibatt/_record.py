"""calibatt_record: a calibration whose prompts somebody else's loop runs (a pipe of diffusers, a sampler of ComfyUI)."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch

from . import _errors, _library
from ._plan import PathLike, Plan, ProgressCallback, compiled, setting_list
from ._session import RunFacts, Session, device_index


@dataclass(frozen=True)
class PromptFacts:
    """What one measurement of a profile is told from another by."""

    text: str
    negative_prompt: str = ""
    seed: int = 0


@dataclass
class Calibration:
    """calibatt_calibration: which runs are measured, and how."""

    run: RunFacts  #: what every prompt's run is like
    device: torch.device
    prompts: Sequence[PromptFacts]
    precision: str  #: "f32", "bf16" or "fp16": of the run's arithmetic
    settings: Mapping[str, Any] = field(default_factory=dict)  #: flags of `calibatt calibrate --help`, with _ for -
    conditions: str = ""  #: what else every measurement depends on: a profile that was measured under others is refused

    def record(self, profile: PathLike, run_prompt: Callable[[int, Session], float], prompt_range: Tuple[int, int] = (0, 0)) -> Dict[str, Any]:
        """Measures the prompts that the folder `profile` lacks and adds one file for each, atomically.

        Killed at any moment, the same call goes on where it was.

        Args:
            run_prompt: called with a prompt's index and the session through which all its self-attention has to go, from the
                first step to the last; gives the seconds that the transformer took, or 0. What it raises ends the call and
                reaches you, and nothing of that prompt is kept.
            prompt_range: [first, end) of the prompts that this process runs; (0, 0): all of them.

        Returns the JSON of calibatt_record (include/calibatt/c_api.h). Raises Mismatch when the folder holds another
        calibration, UsageError, WriteError, NumericError, DeviceError.
        """
        library = _library.loaded()
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

        struct = self._struct(prompt_range)
        callback = _library.RunPrompt(run_one)
        try:
            return json.loads(library.text(lambda text: library.record(os.fsencode(profile), ctypes.byref(struct), callback, None, text)))
        except _errors.Error:
            if raised:
                raise raised[0] from None
            raise

    def compile(self, profile: PathLike, output: PathLike, progress: Optional[ProgressCallback] = None) -> Plan:
        """A plan of these prompts alone, whatever else the folder holds. Raises UsageError where one was not measured, WriteError."""
        library, struct = _library.loaded(), self._struct()

        def run(path: bytes, tell: Any) -> str:
            return library.text(lambda text: library.compile_prompts(os.fsencode(profile), path, ctypes.byref(struct), tell, None, text))

        return compiled(output, progress, run)

    def _struct(self, prompt_range: Tuple[int, int] = (0, 0)) -> _library.Calibration:
        """It keeps what it points to."""
        listed = (_library.Prompt * max(1, len(self.prompts)))()
        for entry, prompt in zip(listed, self.prompts):
            entry.text, entry.negative_prompt = _library.encoded(prompt.text), _library.encoded(prompt.negative_prompt or None)
            entry.seed = prompt.seed
        settings, count = setting_list(self.settings)
        return _library.Calibration(
            struct_size=ctypes.sizeof(_library.Calibration),
            run=ctypes.pointer(self.run.as_struct(device_index(self.device))),
            prompts=listed,
            num_prompts=len(self.prompts),
            first_prompt=prompt_range[0],
            end_prompt=prompt_range[1],
            precision=self.precision.encode(),
            settings=settings,
            num_settings=count,
            conditions=_library.encoded(self.conditions or None),
        )
