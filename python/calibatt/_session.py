"""A session of the C library on torch's tensors: one run's self-attention, planned, dense or recording."""

from __future__ import annotations

import contextlib
import ctypes
import json
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from . import _errors, _library
from ._plan import Plan

DTYPES = {torch.float32: _library.F32, torch.float16: _library.F16, torch.bfloat16: _library.BF16}
PRECISIONS = {torch.float32: "f32", torch.float16: "fp16", torch.bfloat16: "bf16"}
ON_MISMATCH = {"refuse": _library.REFUSE, "warn": _library.WARN, "dense": _library.DENSE}


def mismatch_choice(on_mismatch: Any) -> str:
    """The choice's name. "error" is what "refuse" was called before, and is understood."""
    choice = "refuse" if on_mismatch == "error" else on_mismatch
    if not isinstance(choice, str) or choice not in ON_MISMATCH:
        raise _errors.UsageError(f"on_mismatch is {on_mismatch!r}; give one of {', '.join(map(repr, ON_MISMATCH))}")
    return choice


@dataclass(frozen=True)
class RunFacts:
    """One denoising run, as far as attention is concerned; the members of calibatt_run."""

    grid: Tuple[int, int, int]  #: latent frames, rows, columns in tokens
    num_heads: int
    head_dim: int
    num_layers: int
    sigmas: Tuple[float, ...]  #: noise level of each step, falling from at most 1
    step_transformer: Tuple[int, ...] = ()  #: empty where there is one
    transformer_names: Tuple[str, ...] = ("",)
    fingerprints: Tuple[Optional[str], ...] = (None,)  #: None: not compared
    video: Tuple[int, int, int] = (0, 0, 0)  #: frames, height, width in pixels; 0: not known
    flow_shift: float = 0  #: 0: not known
    guidance_scale: Optional[float] = None  #: 0 and 1: no guidance; None: not known
    scheduler: Optional[str] = None
    second_guidance_scale: Optional[float] = None  #: of the second transformer's steps; None: guidance_scale

    def as_struct(self, device: int) -> _library.Run:
        """The struct keeps what it points to."""
        run = _library.Run(struct_size=ctypes.sizeof(_library.Run), device=device)
        run.frames, run.height, run.width = self.grid
        run.num_heads, run.head_dim, run.num_layers = self.num_heads, self.head_dim, self.num_layers
        run.num_steps = len(self.sigmas)
        run.sigmas = (ctypes.c_double * len(self.sigmas))(*self.sigmas)
        if self.step_transformer:
            run.step_transformer = (ctypes.c_int32 * len(self.sigmas))(*self.step_transformer)
        run.num_transformers = len(self.fingerprints)
        run.fingerprints = _text_array(self.fingerprints)
        run.transformer_names = _text_array(self.transformer_names)
        run.video_frames, run.video_height, run.video_width = self.video
        run.flow_shift = self.flow_shift
        run.guidance_scale, run.second_guidance_scale = _guidance(self.guidance_scale), _guidance(self.second_guidance_scale)
        run.scheduler = _library.encoded(self.scheduler)
        return run


def _guidance(scale: Optional[float]) -> float:
    """As calibatt_run has it."""
    return 0 if scale is None else scale if scale > 0 else _library.UNGUIDED


def _text_array(texts: Tuple[Optional[str], ...]) -> Any:
    return (ctypes.c_char_p * len(texts))(*[_library.encoded(text) for text in texts])


@dataclass(frozen=True)
class StepRule:
    """How a step gets its prediction; the members of calibatt_prediction."""

    name: str  #: "forward", "hold", "residual", "linear"
    sources: Tuple[int, ...] = ()  #: steps that it is made from, the latest first; empty where the transformer runs
    weights: Tuple[float, ...] = ()  #: of their predictions
    latents_weight: float = 0.0  #: of the latents less those of the first source


@dataclass
class OutputFacts:
    """What follows the attention in its block, for calibration: residual += gate ⊙ (W_o · heads)."""

    weight: torch.Tensor  #: W_o, [out_features, num_heads · head_dim], contiguous
    gate: Optional[torch.Tensor]  #: [out_features] float32; None: ones
    residual_square_sum: float
    squared_gain: Optional[Callable[[], float]] = None  #: where W_o's output is normalised: 1/mean(its square)


def device_index(device: torch.device) -> int:
    """A torch device as the C library counts them. Raises Unsupported for kinds that it does not know."""
    if device.type == "cpu":
        return _library.CPU
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.current_device() if device.index is None else device.index
    raise _errors.Unsupported(f"calibatt computes on CPUs and NVIDIA GPUs, and this run is on {device}; move the pipe there with pipe.to()")


class Session:
    """calibatt_session. One forward at a time; see include/calibatt/c_api.h."""

    def __init__(self, handle: Any, owned: bool, keep: Any = None):
        self._library, self._handle, self._owned, self._keep = _library.loaded(), handle, owned, keep
        self._raised: List[BaseException] = []

    @classmethod
    def open(cls, plan: Optional[Plan], run: RunFacts, device: torch.device, on_mismatch: str = "refuse", reuses_steps: bool = False) -> "Session":
        """reuses_steps: predictions are made without a forward where step_rules() says so; else such plans are refused.

        Raises Mismatch naming both values when the plan was made for something else, DeviceError.
        """
        handle = ctypes.c_void_p()
        struct = run.as_struct(device_index(device))
        struct.reuses_steps = reuses_steps
        _library.loaded().session_open(plan._handle if plan else None, ctypes.byref(struct), ON_MISMATCH[mismatch_choice(on_mismatch)], ctypes.byref(handle))
        return cls(handle, owned=True, keep=plan)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle and self._owned:
            self._library.session_close(handle)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def token_order(self, num_tokens: int) -> torch.Tensor:
        """[num_tokens] int64: the raster index of the token at each position."""
        order = torch.empty(num_tokens, dtype=torch.int32)
        self._library.session_token_order(self._handle, ctypes.cast(order.data_ptr(), ctypes.POINTER(ctypes.c_int32)))
        return order.long()

    def step_rules(self, num_steps: int) -> List[StepRule]:
        """How each step of the run gets its prediction."""
        rules = []
        for step in range(num_steps):
            told = _library.Prediction(struct_size=ctypes.sizeof(_library.Prediction))
            self._library.session_prediction(self._handle, step, ctypes.byref(told))
            count = told.num_sources
            rules.append(StepRule(_library.STEP_REUSES[told.reuse], tuple(told.source_steps[:count]), tuple(told.weights[:count]), told.latents_weight))
        return rules

    def begin_forward(self, step: int, branch: int) -> None:
        self._library.session_begin_forward(self._handle, step, branch)

    def wants_output(self) -> bool:
        return bool(self._library.session_wants_output(self._handle))

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, output: Optional[OutputFacts] = None) -> None:
        """q, k, v, out: [batch, tokens, heads, head_dim], q and k normalised and rotated, all of one dtype; out is written.

        On a GPU the work is enqueued on torch's present stream. On a CPU float16 is computed in float32.
        """
        call = _library.Call(struct_size=ctypes.sizeof(_library.Call), layer=layer, batch=q.shape[0], num_tokens=q.shape[1])
        call.dtype = DTYPES[q.dtype]
        call.q, call.k, call.v, call.out = _heads(q), _heads(k), _heads(v), _heads(out)
        if output is not None:
            call.output = ctypes.pointer(self._output_struct(output))
        if not q.is_cuda:
            self._attend(call)
            return
        with torch.cuda.device(q.device):
            call.stream = torch.cuda.current_stream(q.device).cuda_stream
            size = ctypes.c_size_t()
            self._library.session_workspace(self._handle, ctypes.byref(call), ctypes.byref(size))
            # Freed when this returns, which torch's allocator allows: later work on the stream comes after ours.
            workspace = torch.empty(size.value, dtype=torch.uint8, device=q.device)
            call.workspace, call.workspace_bytes = workspace.data_ptr(), size.value
            self._attend(call)

    def _attend(self, call: _library.Call) -> None:
        try:
            self._library.session_attend(self._handle, ctypes.byref(call))
        except _errors.Error:
            if self._raised:
                raise self._raised.pop() from None
            raise

    def _output_struct(self, facts: OutputFacts) -> _library.Output:
        output = _library.Output(struct_size=ctypes.sizeof(_library.Output), weight=facts.weight.data_ptr())
        output.weight_dtype, output.out_features = DTYPES[facts.weight.dtype], facts.weight.shape[0]
        output.gate = facts.gate.data_ptr() if facts.gate is not None else None
        output.residual_square_sum = facts.residual_square_sum
        if facts.squared_gain is not None:
            output.squared_gain = _library.SquaredGain(lambda _: self._guarded(facts.squared_gain))  # type: ignore[arg-type]
        return output

    def _guarded(self, ask: Callable[[], float]) -> float:
        try:
            return ask()
        except BaseException as error:  # noqa: BLE001 - nothing may pass through the C code
            self._raised.append(error)
            return float("nan")

    def report(self) -> Dict[str, Any]:
        """What the session has done; the names are those of calibatt_session_json."""
        return json.loads(self._library.text(lambda text: self._library.session_json(self._handle, text)))


def _heads(x: torch.Tensor) -> _library.Heads:
    if x.stride(3) != 1:
        raise _errors.UsageError(f"the channels of a head must be contiguous, and their stride is {x.stride(3)}")
    return _library.Heads(x.data_ptr(), x.stride(0), x.stride(1), x.stride(2))
