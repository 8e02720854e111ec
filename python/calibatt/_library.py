"""The C library, as ctypes sees it: structs and functions of include/calibatt/c_api.h, and errors as exceptions.

Every struct and function here has the name that it has in the header, without `calibatt_`. tests/install/layout_test.py compares
them with what a C compiler makes of the header.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import threading
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint64, c_void_p
from importlib import metadata
from pathlib import Path
from typing import Any, List, Optional

from . import _errors

ABI_VERSION = 1
CPU = -1
REFUSE, WARN, DENSE = 0, 1, 2
CONDITIONAL, UNCONDITIONAL = 0, 1
F32, F16, BF16 = 0, 1, 2
UNGUIDED = -1.0
STEP_REUSES = ("forward", "hold", "residual", "linear")  #: by calibatt_step_reuse


class Run(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("device", c_int32),
        ("frames", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("num_heads", c_int32),
        ("head_dim", c_int32),
        ("num_layers", c_int32),
        ("num_steps", c_int32),
        ("sigmas", POINTER(c_double)),
        ("step_transformer", POINTER(c_int32)),
        ("num_transformers", c_int32),
        ("fingerprints", POINTER(c_char_p)),
        ("transformer_names", POINTER(c_char_p)),
        ("video_frames", c_int32),
        ("video_height", c_int32),
        ("video_width", c_int32),
        ("flow_shift", c_double),
        ("guidance_scale", c_double),
        ("scheduler", c_char_p),
        ("second_guidance_scale", c_double),
        ("reuses_steps", c_int32),
    ]


class Prediction(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("reuse", c_int32),
        ("num_sources", c_int32),
        ("source_steps", c_int32 * 2),
        ("weights", c_double * 2),
        ("latents_weight", c_double),
    ]


class Heads(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("batch_stride", c_int64), ("token_stride", c_int64), ("head_stride", c_int64)]


SquaredGain = ctypes.CFUNCTYPE(c_double, c_void_p)


class Output(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("weight", c_void_p),
        ("weight_dtype", c_int32),
        ("out_features", c_int32),
        ("gate", c_void_p),
        ("residual_square_sum", c_double),
        ("squared_gain", SquaredGain),
        ("user", c_void_p),
    ]


class Call(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("layer", c_int32),
        ("batch", c_int32),
        ("num_tokens", c_int32),
        ("dtype", c_int32),
        ("q", Heads),
        ("k", Heads),
        ("v", Heads),
        ("out", Heads),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
        ("stream", c_void_p),
        ("output", POINTER(Output)),
    ]


class Setting(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("value", c_char_p)]


class Prompt(ctypes.Structure):
    _fields_ = [("text", c_char_p), ("negative_prompt", c_char_p), ("seed", c_uint64)]


class Calibration(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("run", POINTER(Run)),
        ("prompts", POINTER(Prompt)),
        ("num_prompts", c_int32),
        ("first_prompt", c_int32),
        ("end_prompt", c_int32),
        ("precision", c_char_p),
        ("settings", POINTER(Setting)),
        ("num_settings", c_int32),
        ("conditions", c_char_p),
    ]


class Masks(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("device", c_int32),
        ("num_heads", c_int32),
        ("num_queries", c_int32),
        ("num_keys", c_int32),
        ("block_q", c_int32),
        ("block_k", c_int32),
        ("kept", POINTER(c_uint8)),
        ("summarize_skipped", c_int32),
        ("anchor_tokens", POINTER(c_int32)),
        ("num_anchors", c_int32),
        ("anchor_of", POINTER(c_int32)),
    ]


class AttentionCall(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("device", c_int32),
        ("dtype", c_int32),
        ("out_f32", c_int32),
        ("q", Heads),
        ("k", Heads),
        ("v", Heads),
        ("out", Heads),
        ("batch", c_int32),
        ("num_heads", c_int32),
        ("head_dim", c_int32),
        ("num_queries", c_int32),
        ("num_keys", c_int32),
        ("block_q", c_int32),
        ("block_k", c_int32),
        ("scale", c_float),
        ("schedule", c_void_p),
        ("block_energy", c_void_p),
        ("kernel", c_char_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
        ("stream", c_void_p),
    ]


RunPrompt = ctypes.CFUNCTYPE(c_int32, c_void_p, c_int32, c_void_p, POINTER(c_double))
Progress = ctypes.CFUNCTYPE(c_int32, c_void_p, c_char_p, c_int64, c_int64)

#: Function → (what it returns, arguments). c_int32 is a calibatt_status unless the function is in VALUES.
FUNCTIONS = {
    "abi_version": (c_int32, []),
    "version": (c_char_p, []),
    "last_error": (c_char_p, []),
    "string_free": (None, [c_void_p]),
    "cuda_available": (c_int32, []),
    "plan_open": (c_int32, [c_char_p, POINTER(c_void_p)]),
    "plan_close": (None, [c_void_p]),
    "plan_json": (c_char_p, [c_void_p]),
    "plan_text": (c_char_p, [c_void_p]),
    "token_order": (c_int32, [c_char_p, c_int32, c_int32, c_int32, POINTER(c_int32)]),
    "session_open": (c_int32, [c_void_p, POINTER(Run), c_int32, POINTER(c_void_p)]),
    "session_close": (None, [c_void_p]),
    "session_token_order": (c_int32, [c_void_p, POINTER(c_int32)]),
    "session_prediction": (c_int32, [c_void_p, c_int32, POINTER(Prediction)]),
    "session_begin_forward": (c_int32, [c_void_p, c_int32, c_int32]),
    "session_workspace": (c_int32, [c_void_p, POINTER(Call), POINTER(c_size_t)]),
    "session_attend": (c_int32, [c_void_p, POINTER(Call)]),
    "session_prefetch": (c_int32, [c_void_p, c_int32, c_int32]),
    "session_wants_output": (c_int32, [c_void_p]),
    "session_json": (c_int32, [c_void_p, POINTER(c_void_p)]),
    "settings_check": (c_int32, [POINTER(Setting), c_int32]),
    "record": (c_int32, [c_char_p, POINTER(Calibration), RunPrompt, c_void_p, POINTER(c_void_p)]),
    "compile": (c_int32, [c_char_p, c_char_p, POINTER(Setting), c_int32, Progress, c_void_p, POINTER(c_void_p)]),
    "compile_prompts": (c_int32, [c_char_p, c_char_p, POINTER(Calibration), Progress, c_void_p, POINTER(c_void_p)]),
    "merge_profiles": (c_int32, [POINTER(c_char_p), c_int32, c_char_p, POINTER(c_int32)]),
    "fingerprint": (c_int32, [c_char_p, c_char_p, POINTER(c_void_p)]),
    "schedule_make": (c_int32, [POINTER(Masks), POINTER(c_void_p)]),
    "schedule_free": (None, [c_void_p]),
    "schedule_bytes": (c_int64, [c_void_p]),
    "attention_kernel": (c_int32, [POINTER(AttentionCall), POINTER(c_char_p), POINTER(c_size_t)]),
    "attention": (c_int32, [POINTER(AttentionCall)]),
}
VALUES = {"abi_version", "version", "last_error", "string_free", "plan_close", "plan_json", "plan_text", "session_close",
          "session_wants_output", "schedule_free", "schedule_bytes"}  # fmt: skip

ENVIRONMENT = "CALIBATT_LIBRARY"
#: Messages name members of structs and settings; here they are arguments, some of them of diffusers' pipes.
MEMBER = re.compile(r"(?<![\w/.-])(?:run|settings)\.([a-z][a-z0-9_-]*)")
ARGUMENTS = {"video_width": "width", "video_height": "height", "video_frames": "num_frames", "num_steps": "num_inference_steps",
             "second_guidance_scale": "guidance_scale_2"}  # fmt: skip
OTHERS = {"calibration.first_prompt, end_prompt": "prompt_range", "profile_dir": "profile", "prompt.seed": "seed"}


def in_terms_of_python(message: str) -> str:
    message = MEMBER.sub(lambda member: ARGUMENTS.get(member[1], member[1].replace("-", "_")), message)
    for name, argument in OTHERS.items():
        message = message.replace(name, argument)
    return message


def library_path() -> Path:
    """The library of the environment variable CALIBATT_LIBRARY, else the one beside the package.

    Raises NotFound when it is not there.
    """
    asked = os.environ.get(ENVIRONMENT)
    if asked:
        if Path(asked).is_file():
            return Path(asked)
        raise _errors.NotFound(f"{ENVIRONMENT} is {asked!r}, and no such file is there; give the path of libcalibatt.so")
    folder = Path(__file__).parent
    for found in [*sorted(folder.glob("libcalibatt.so*")), *_installed_libraries()]:
        return found
    raise _errors.NotFound(f"no libcalibatt.so is in {folder}; install the wheel, or build one with `make` and set {ENVIRONMENT} to "
                           "…/build/cpu/libcalibatt.so")  # fmt: skip


def _installed_libraries() -> List[Path]:
    """Those of the installed package, which lie elsewhere than its source where that was installed by `pip install -e .`."""
    try:
        files = metadata.files("calibatt") or []
    except metadata.PackageNotFoundError:
        return []
    paths = (Path(str(file.locate())) for file in files if file.name.startswith("libcalibatt.so"))
    return [path for path in paths if path.is_file()]


class Library:
    """Functions of the C library by the names of FUNCTIONS. One that returns a status raises what it stands for."""

    def __init__(self, path: Path):
        try:
            self.path, self._dll = path, ctypes.CDLL(str(path))
        except OSError as error:
            raise _errors.Unreadable(f"{path}: this library cannot be loaded: {error}") from None
        for name, (result, arguments) in FUNCTIONS.items():
            try:
                function = getattr(self._dll, "calibatt_" + name)
            except AttributeError:
                raise _errors.FormatError(f"{path}: this library has no calibatt_{name}; it is older than this package, install both anew") from None
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function if name in VALUES else self._checked(function))
        version = self.abi_version()
        if version != ABI_VERSION:
            raise _errors.FormatError(f"{path}: this library speaks version {version} of the C interface, this package {ABI_VERSION}; install both anew")

    def _checked(self, function: Any) -> Any:
        def call(*arguments: Any) -> None:
            status = function(*arguments)
            if status:
                self.fail(status)

        return call

    def fail(self, status: int) -> None:
        text = in_terms_of_python((self.last_error() or b"").decode("utf-8", "replace"))
        raise _errors.BY_STATUS.get(status, _errors.InternalError)(text or f"the library failed with status {status}")

    def text(self, ask: Any) -> str:
        """What `ask(char**)` gives, freed."""
        pointer = c_void_p()
        ask(ctypes.byref(pointer))
        try:
            return (ctypes.cast(pointer, c_char_p).value or b"").decode("utf-8")
        finally:
            self.string_free(pointer)


_lock = threading.Lock()


@functools.lru_cache(maxsize=None)
def _load() -> Library:
    return Library(library_path())


def loaded() -> Library:
    """The library, loaded when it is first asked for. Raises NotFound, Unreadable, FormatError."""
    with _lock:
        return _load()


def encoded(text: Optional[str]) -> Optional[bytes]:
    """As C reads it. Raises UsageError for a text that C would read another of."""
    if text is None:
        return None
    if "\0" in text:
        raise _errors.UsageError(f"{text[:60]!r} holds a NUL character; leave that out")
    return text.encode("utf-8", "surrogateescape")
