"""What happens in a forward: which step of which run it is, the session of that run, the order of tokens, and each attention call."""

from __future__ import annotations

import functools
import warnings
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch

from . import _errors, _library, _ops, _reuse
from ._session import DTYPES, RunFacts, Session

if TYPE_CHECKING:
    from ._families import Family
    from ._plan import Plan

Grid = Tuple[int, int, int]
Sample = Tuple[int, int]  #: its index in the batch, and the batch's size


class Switch:
    """Whether hooks and processors do anything. Read by torch.compile's guards, so it holds nothing else."""

    def __init__(self) -> None:
        self.on = True

    def __deepcopy__(self, _: Any) -> "Switch":
        raise _errors.Unsupported("a transformer with a plan cannot be copied, since the copy would run by the same sessions; call "
                                  "calibatt.restore(pipe) first, and calibatt.apply for each pipe")  # fmt: skip


@dataclass(frozen=True)
class ForwardContext:
    """What cache_context was told of the forwards within it."""

    name: str  #: "cond", "uncond"
    step: Optional[int]
    num_steps: Optional[int] = None  #: pipes tell it too; then the pipe's scheduler is at this step


class Runtime:
    """What one pipe's transformers share. Subclasses say which session a forward uses: PlannedRuntime, calibration's Recording."""

    def __init__(self, pipe: Any, family: "Family"):
        self.with_pipe: Any = None  #: closes this when the pipe goes
        self._pipe = weakref.ref(pipe)  # the pipe owns its transformers, and these our hooks
        self.family = family
        self.switch = Switch()
        self.bindings: List[weakref.ref[Binding]] = []  #: of the transformers that are still there, which own them
        self.blocks: List[List[Any]] = []  #: of each transformer

    @property
    def pipe(self) -> Any:
        pipe = self._pipe()
        if pipe is None:
            raise _errors.UsageError("the pipe that the plan was applied to is gone, and its transformer runs in another; apply the plan to the pipe that you use")
        return pipe

    def begin_forward(self, binding: "Binding", grid: Grid, x: torch.Tensor) -> None:
        raise NotImplementedError

    def take_calls(self, binding: "Binding") -> Callable[[], None]:
        """Within cache_context: what is to stand in the place of the transformer's call. Returns what undoes it."""
        return lambda: None

    def order(self) -> "Order":
        raise NotImplementedError

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, sample: Optional[Sample]) -> None:
        """sample: which one it is, where samples are computed one by one; None: all of a batch at once."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives back what the sessions hold."""


class Order:
    """A token order and its inverse, on any device."""

    def __init__(self, raster_of_position: torch.Tensor):
        self._order = raster_of_position
        self.is_raster = bool((raster_of_position == torch.arange(raster_of_position.numel())).all())
        self._on_device: Dict[Tuple[torch.device, bool], torch.Tensor] = {}

    def __len__(self) -> int:
        return self._order.numel()

    def index(self, device: torch.device, back: bool) -> torch.Tensor:
        key = (device, back)
        if key not in self._on_device:
            self._on_device[key] = (torch.argsort(self._order) if back else self._order).to(device)
        return self._on_device[key]


class Binding:
    """One transformer of a pipe: what its operations call, and what the pipe says of the forward that comes."""

    def __init__(self, runtime: Runtime, index: int):
        self.runtime, self.index = runtime, index
        self.attached = False
        self.attachment: Any = None  #: knows how to give back what was there
        self.timestep: Optional[torch.Tensor] = None  #: [batch] of the forward that begins; None: not needed
        self.context: Optional[ForwardContext] = None  #: within cache_context
        self.thread = 0  #: that entered it
        self.number = _ops.register(self)
        self._order: Optional[Order] = None  #: of the forward that runs

    def detach(self) -> None:
        self.attached = False
        self.attachment.detach()

    def begin_forward(self, grid: Grid, x: torch.Tensor, timestep: Optional[torch.Tensor] = None) -> None:
        self._order, self.timestep = None, timestep
        self._text: Dict[Any, List[torch.Tensor]] = {}
        self.runtime.begin_forward(self, grid, x)
        self._order = self.runtime.order()

    def arrange(self, x: torch.Tensor, back: bool) -> torch.Tensor:
        order = self._running_order()
        if x.shape[1] != len(order):
            raise _errors.Unsupported(f"this forward has {len(order)} video tokens, and {x.shape[1]} arrive: something splits them, such as context "
                                      "parallelism, which cannot be combined with a plan")  # fmt: skip
        return x.clone(memory_format=torch.contiguous_format) if order.is_raster else x.index_select(1, order.index(x.device, back))

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        self._running_order()
        q, k, v = (_channels_contiguous(x) for x in (q, k, v))
        require_dtypes(q, k, v)
        self.runtime.attend(layer, q, k, v, out, None)

    def attend_joint(self, layer: int, video: Sequence[torch.Tensor], text: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        self._running_order()
        batch, num_tokens, heads, head_dim = video[0].shape
        require_dtypes(*video, *text)
        out = video[0].new_empty((batch, num_tokens + text[0].shape[1], heads, head_dim))
        for sample, valid in enumerate(self._valid_text(mask)):
            end = num_tokens + valid.numel()
            q, k, v = (torch.cat((x[sample], behind[sample].index_select(0, valid)))[None] for x, behind in zip(video, text))
            self.runtime.attend(layer, q, k, v, out[sample : sample + 1, :end], (sample, batch))
            out[sample, end:] = 0
        return out

    def _valid_text(self, mask: torch.Tensor) -> List[torch.Tensor]:
        """The indices of the text tokens that are there, of each sample. All layers of a forward get the same mask: looked at once,
        since the host has to wait for it.
        """
        key = (mask.data_ptr(), mask._version, mask.shape)
        if key not in self._text:
            self._text = {key: [torch.nonzero(row).flatten() for row in mask.bool()]}
        return self._text[key]

    def _running_order(self) -> Order:
        if self._order is None:
            raise _errors.Error("attention runs before its tokens were put in order: this transformer was compiled before calibatt.apply; "
                                "call torch._dynamo.reset() and compile again")  # fmt: skip
        return self._order


def _channels_contiguous(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def require_dtypes(*tensors: torch.Tensor) -> None:
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) == 1 and next(iter(dtypes)) in DTYPES:
        return
    names = ", ".join(sorted(str(dtype).replace("torch.", "") for dtype in dtypes))
    raise _errors.Unsupported(f"self-attention runs in {names}; calibatt knows float32, float16 and bfloat16, one for query, key and value: "
                              "load the transformer with such a dtype")  # fmt: skip


def step_of(pipe: Any, binding: Binding) -> Tuple[int, int]:
    """(step, branch of guidance) of the forward that begins, as the pipe's loop told it."""
    if binding.context is None:
        raise _errors.Unsupported("which denoising step this is cannot be known: the transformer was called outside of the pipe; call it within "
                                  "transformer.cache_context('cond', step_index=step), as diffusers' pipelines do")  # fmt: skip
    name, step, num_steps = binding.context.name, binding.context.step, binding.context.num_steps
    scheduler = pipe.scheduler
    scheduled = getattr(scheduler, "step_index", None)

    def require_ours(same: bool, theirs: str, ours: str) -> None:
        if not same:
            raise _errors.Mismatch(f"this is {theirs}, and the scheduler of the pipe that the plan was applied to {ours}: another pipe with a scheduler "
                                   "of its own runs this transformer; call calibatt.apply for that pipe")  # fmt: skip

    require_ours(getattr(scheduler, "num_inference_steps", None) is not None, f"step {step or 0}", "was never set to any steps")
    if num_steps is not None:
        require_ours(num_steps == len(scheduler.timesteps), f"a run of {num_steps} steps", f"is set to {len(scheduler.timesteps)}")
    if step is None:  # Mochi's pipeline tells its scheduler alone
        step = getattr(scheduler, "begin_index", None) if scheduled is None else scheduled
        given, ours = binding.timestep, scheduler.timesteps[step or 0 : (step or 0) + 1]
        if given is not None and len(ours) == 1:  # at the precision in which the pipe hands it on
            same = bool(given.flatten()[:1].cpu() == ours.to(given.dtype).cpu())
            require_ours(same, f"a forward of timestep {float(given.flatten()[0]):g}", f"is at step {step or 0}, timestep {float(ours):g}")
    elif num_steps is not None:
        require_ours((scheduled or 0) == step, f"step {step}", f"is at step {scheduled or 0}")
    return step or 0, _library.UNCONDITIONAL if name == "uncond" else _library.CONDITIONAL


def _since(report: Dict[str, Any], before: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """What a session did since then. All its calls are of one size."""
    if not before or not before["calls"]:
        return report
    calls = report["calls"] - before["calls"]
    pairs = report["density"] * report["calls"] - before["density"] * before["calls"]
    fallbacks = report["dense_fallback_calls"] - before["dense_fallback_calls"]
    return {**report, "calls": calls, "dense_fallback_calls": fallbacks, "density": pairs / calls if calls else 1.0}


class PlannedRuntime(Runtime):
    """Runs by a plan. A session is opened when the first forward of a run shows its size and steps, and serves later runs like it."""

    def __init__(self, pipe: Any, family: "Family", plan: "Plan", on_mismatch: str, fingerprints: Sequence[Optional[str]]):
        super().__init__(pipe, family)
        self.plan, self.on_mismatch, self.fingerprints = plan, on_mismatch, tuple(fingerprints)
        self.run: Optional[RunFacts] = None
        self.predictor = _reuse.StepPredictor(())
        self.forwards = 0  #: of the present run, those that a plan that reuses steps leaves
        self.sessions: Dict[int, Session] = {}
        self._sigmas: Any = None  #: the scheduler's own tensor, of the run that the sessions are of
        self._conditions: Tuple[Any, ...] = ()
        self._order: Optional[Order] = None
        self._step = self._branch = 0
        self._before: Dict[int, Dict[str, Any]] = {}  #: what the sessions had done when the present run began
        self._begun: Set[int] = set()  #: keys of the sessions that the present forward began in
        self._device = torch.device("cpu")
        self.reasons: Dict[str, str] = {}  #: why the weights of a transformer were not compared
        self._warned: Set[str] = set()

    def take_calls(self, binding: Binding) -> Callable[[], None]:
        pipe = self._pipe()  # if it is gone, the forward says so
        if not self.plan.reuses_steps or not self.switch.on or not binding.attached or pipe is None:
            return lambda: None
        module = getattr(pipe, self.family.transformer_names[binding.index])
        return _reuse.take_calls(module, functools.partial(self._predict_or_run, binding))

    @torch.compiler.disable  # where another pipe's torch.compile wrapper calls it
    def _predict_or_run(self, binding: Binding, inner: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """A call of the transformer. Where the step runs no forward, nothing of the transformer is touched."""
        assert binding.context is not None
        transformer = self.family.transformers(self.pipe)[binding.index]
        _reuse.require_no_step_cache(self.family.transformer_names[binding.index], transformer)
        latents, branch = args[0] if args else named["hidden_states"], binding.context.name
        binding.timestep = named.get("timestep")
        self._enter_step(binding, self.family.grid_of(transformer, latents), latents)
        if not self.predictor.reuses(self._step):
            output = inner(*args, **named)
            self.predictor.computed(self._step, branch, latents, output[0])
            return output
        prediction = self.predictor.predicted(self._step, branch, latents)
        return _reuse.output_of(prediction) if named.get("return_dict", True) else (prediction,)

    def begin_forward(self, binding: Binding, grid: Grid, x: torch.Tensor) -> None:
        self._enter_step(binding, grid, x)
        if self.predictor.reuses(self._step):
            raise _errors.Unsupported(f"step {self._step} runs no forward by the plan, and the transformer was called all the same, not by the pipe that the "
                                      "plan was applied to; call that pipe")  # fmt: skip
        self.forwards += 1

    def _enter_step(self, binding: Binding, grid: Grid, x: torch.Tensor) -> None:
        pipe = self.pipe
        self._step, self._branch = step_of(pipe, binding)
        self._begun = set()
        # A new run has new sigmas: its scheduler made them anew.
        sigmas, conditions = pipe.scheduler.sigmas, (getattr(pipe, "_guidance_scale", None), getattr(pipe, "_guidance_scale_2", None), grid, x.device)
        if not self.sessions or self._sigmas is not sigmas or self._conditions != conditions:
            self._begin_run(self.family.run_facts(pipe, grid, len(self.blocks[0]), self.fingerprints), x.device)
            self._sigmas, self._conditions = sigmas, conditions
            self.predictor.begin_run()
            self.forwards, self._before = 0, {key: session.report() for key, session in self.sessions.items()}
        assert self.run is not None
        if self._step >= len(self.run.sigmas):
            raise _errors.Mismatch(f"this is step {self._step}, and the pipe's scheduler has {len(self.run.sigmas)}; call the pipe itself")
        expected = self.run.step_transformer[self._step] if self.run.step_transformer else 0
        if binding.index != expected:
            names = self.family.transformer_names
            raise _errors.Mismatch(f"step {self._step} runs through pipe.{names[binding.index]}, and by the pipe's boundary it is "
                                   f"pipe.{names[expected]}'s; call the pipe itself")  # fmt: skip

    def _begin_run(self, run: RunFacts, device: torch.device) -> None:
        if self.sessions and run == self.run and device == self._device:
            return
        self.close()
        self.run, self._device = run, device
        session = self._session(_library.CONDITIONAL)
        self.predictor = _reuse.StepPredictor(session.step_rules(len(run.sigmas)), self.family.prediction_sign)
        self._order = Order(session.token_order(run.grid[0] * run.grid[1] * run.grid[2]))
        report = session.report()
        fallback = report.get("fallback_reason")
        for text in [*report.get("warnings", []), *([f"this run is dense: {fallback}"] if fallback else [])]:
            if text not in self._warned:
                self._warned.add(text)
                warnings.warn(f"{self.plan.path}: {text}", _errors.CalibattWarning, stacklevel=2)

    def _session(self, key: int) -> Session:
        if key not in self.sessions:
            assert self.run is not None
            self.sessions[key] = Session.open(self.plan, self.run, self._device, self.on_mismatch, reuses_steps=True)
        return self.sessions[key]

    def order(self) -> Order:
        assert self._order is not None
        return self._order

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, sample: Optional[Sample]) -> None:
        # Text differs between branches and with it the masks: each branch of one batch has a session, which then always sees its own text.
        branch = self._branch if sample is None else self.family.branch_of_sample(self.pipe, sample)
        key = _library.CONDITIONAL if sample is None else branch
        session = self._session(key)
        if key not in self._begun:
            session.begin_forward(self._step, branch)
            self._begun.add(key)
        session.attend(layer, q, k, v, out)

    def reports(self) -> List[Dict[str, Any]]:
        """Of the sessions in the present or last run (calibatt_session_json); they may have served runs like it before."""
        return [_since(session.report(), self._before.get(key)) for key, session in self.sessions.items()]

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()
        self._before = {}
        self.sessions, self._sigmas, self._order = {}, None, None
