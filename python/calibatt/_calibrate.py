"""Calibration in the pipe: the user's own dense runs, measured."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import operator
import os
import time
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from tqdm.auto import tqdm

from . import _arguments, _errors, _families, _library, _reuse, _weights
from ._apply import _attach, detach, runtime_of
from ._plan import PathLike, Plan
from ._record import Calibration, PromptFacts
from ._runtime import Binding, Grid, Order, Runtime, Sample, step_of
from ._session import PRECISIONS, RunFacts, Session

#: Arguments of a pipe's call that a calibration gives itself, and what to give it instead.
OURS = {
    "prompt": "prompts",
    "generator": "seed",
    "latents": "seed",
    "prompt_embeds": "prompts",
    "negative_prompt_embeds": "negative_prompt",
    "prompt_attention_mask": "prompts",
    "negative_prompt_attention_mask": "negative_prompt",
    "output_type": None,
    "return_dict": None,
    "num_videos_per_prompt": None,
    "callback_on_step_end": None,
}
#: Those that a profile knows by itself.
KNOWN = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_2", "negative_prompt", "timesteps", "sigmas")


def calibrate(
    pipe: Any,
    prompts: Sequence[str],
    output: PathLike,
    density: Optional[float] = None,
    *,
    profile: Optional[PathLike] = None,
    seed: int = 0,
    prompt_range: Optional[Tuple[int, int]] = None,
    settings: Mapping[str, Any] = {},
    check_weights: bool = True,
    **call: Any,
) -> Optional[Plan]:
    """Measures dense runs of the pipe, one for each prompt, and makes a plan of them. Killed at any moment, the same call goes on.

    >>> plan = calibatt.calibrate(pipe, prompts, "plan.safetensors", density=0.375, height=480, width=832, num_frames=81, guidance_scale=5.0)

    Args:
        pipe: as for `apply`. It is used as it is, LoRAs and offloading included; nothing is decoded. Compiled parts run uncompiled.
        prompts: of the kind that the plan will be used for; four are enough. Prompt i has the noise of seed + i.
        output: the plan file to write; it appears complete or not at all.
        density: share of attention to compute, 0 to 1; begin with .3 to .4. None: as the command line does.
        profile: the folder that keeps what was measured, one file for each prompt; None: output + ".profile". `compile` makes other plans of
            it, and `calibatt calibrate` goes on from it, as this function goes on from what that measured.
        prompt_range: [first, end) of the prompts: only these are run and no plan is made; several processes then do a part each, and
            `calibatt merge` joins their folders.
        settings: flags of `calibatt calibrate --help` with _ for -: {"token_order": "raster", "budget": "energy"}.
        check_weights: the plan is to know which weights it was made for, where their folder is known: reads them, once.
        call: the pipe's own arguments, for every prompt: height, width, num_frames, num_inference_steps, guidance_scale, negative_prompt, …

    Returns the plan; None with a prompt_range. Raises UsageError, Unsupported, Mismatch when the profile is of something else, WriteError,
    NumericError, DeviceError, and what the pipe raises.
    """
    output = os.fsdecode(output)
    profile = output + ".profile" if profile is None else os.fsdecode(profile)
    prompts = _arguments.texts(prompts)
    seed, settings = _arguments.first_seed(seed, len(prompts)), _arguments.with_density(settings, density)
    prompt_range = None if prompt_range is None else _checked_range(prompt_range)
    _require_sound(pipe, call)
    family = _families.family_of(pipe)
    transformers = family.transformers(pipe)
    for name, transformer in zip(family.transformer_names, transformers):
        _families.require_supported(family, name, transformer)
        _require_every_step(name, transformer)
    recording = Recording(pipe, family, [_fingerprint(pipe, family, index, check_weights) for index in range(len(transformers))])
    with recording.attached(), _eager():
        run, device = recording.probe(prompts[0], call)
        facts = [PromptFacts(prompt, call.get("negative_prompt") or "", seed + index) for index, prompt in enumerate(prompts)]
        calibration = Calibration(run, device, facts, PRECISIONS[transformers[0].dtype], settings,
                                  _conditions(pipe, family, run.fingerprints, call))  # fmt: skip
        with _bar(pipe, len(prompts)) as bar:
            done = calibration.record(profile, lambda index, session: recording.run_prompt(index, prompts[index], facts[index].seed, session, call, bar),
                                      prompt_range or (0, 0))  # fmt: skip
            bar.n = len(prompts)
            bar.refresh()
    if done.get("note"):
        tqdm.write(f"measured: {_library.in_terms_of_python(done['note'])}")
    return None if prompt_range else calibration.compile(profile, output)


def _checked_range(prompt_range: Any) -> Tuple[int, int]:
    with contextlib.suppress(TypeError, ValueError):
        first, end = prompt_range
        first, end = operator.index(first), operator.index(end)
        if 0 <= first < end < 2**31:
            return first, end
    raise _errors.UsageError(f"prompt_range is {prompt_range!r}, and is to be (first, end): the first prompt, from 0, and the one after the last")


def _require_sound(pipe: Any, call: Mapping[str, Any]) -> None:
    for name in call:
        if name in OURS:
            instead = f"; give {OURS[name]} to calibrate" if OURS[name] else ""
            raise _errors.UsageError(f"{name} is what a calibration chooses itself{instead}")
    if runtime_of(pipe) is not None:
        raise _errors.UsageError("a plan is applied to this pipe, and a calibration measures dense runs; call calibatt.restore(pipe) first")
    known = inspect.signature(type(pipe).__call__).parameters
    for name in call:
        if name not in known:
            raise _errors.UsageError(f"{name} is no argument of {type(pipe).__name__}; settings of the calibration go into settings={{…}}")
    if not isinstance(call.get("negative_prompt") or "", str):
        raise _errors.UsageError("negative_prompt is to be one text, for all prompts")


def _fingerprint(pipe: Any, family: _families.Family, index: int, check: bool) -> Optional[str]:
    transformer = family.transformers(pipe)[index]
    folder = _weights.source_folder(pipe, family.transformer_names[index], transformer)
    if not check or folder is None or _weights.difference(pipe, transformer, folder):
        return None
    return _weights.fingerprint(folder)


def _require_every_step(name: str, transformer: Any) -> None:
    cache = _reuse.step_cache_of(name, transformer)
    if cache is not None:
        raise _errors.Unsupported(f"pipe.{name} leaves out steps by {cache[0]}; call {cache[1]} first: calibration needs every step")


def _conditions(pipe: Any, family: _families.Family, fingerprints: Sequence[Optional[str]], call: Mapping[str, Any]) -> str:
    """What the measurements depend on that nothing else of a profile tells: weights without a fingerprint, LoRAs among them, a text encoder of
    another model, and arguments of the pipe. Empty where the command line would measure the same.
    """
    said = [
        _weights.in_memory(name, transformer)
        for name, transformer, fingerprint in zip(family.transformer_names, family.transformers(pipe), fingerprints)
        if fingerprint is None
    ]
    encoder = _weights.exchanged_text_encoder(pipe, family.transformer_names[0], family.transformers(pipe)[0])
    said += [encoder] if encoder else []
    parameters = inspect.signature(type(pipe).__call__).parameters
    for name in sorted(set(call) - set(KNOWN)):
        text = repr(call[name])
        if call[name] is None or name.startswith("callback_") or text == repr(parameters[name].default):
            continue
        said.append(f"{name}: {text if len(text) <= 80 and text.isprintable() else hashlib.sha256(text.encode()).hexdigest()[:32]}")
    return ", ".join(said)


@contextlib.contextmanager
def _bar(pipe: Any, total: int) -> Iterator[Any]:
    """As the pipe shows its own progress."""
    with tqdm(total=total, **{"desc": "calibrate", "unit": "prompt", **getattr(pipe, "_progress_bar_config", {})}) as bar:
        yield bar


def _eager() -> Any:
    """Compiled modules run as they were written: hooks that read the residual stream are no part of their graphs."""
    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance else contextlib.nullcontext()


class _Probed(Exception):
    """Ends a run at its first forward, when everything about it is known."""

    def __init__(self, run: RunFacts, device: torch.device):
        super().__init__()
        self.run, self.device = run, device


class Recording(Runtime):
    """Dense runs whose every self-attention goes through a recording session."""

    def __init__(self, pipe: Any, family: _families.Family, fingerprints: Sequence[Optional[str]]):
        super().__init__(pipe, family)
        self._fingerprints = fingerprints
        self._session: Optional[Session] = None
        self._run: Optional[RunFacts] = None
        self._order: Optional[Order] = None
        self._step, self._began = -1, 0.0
        self._attended = 0  #: attention calls of the present forward
        self._expected: Optional[int] = None  #: of a whole one; None: no forward has begun
        self._binding: Optional[Binding] = None
        self._inputs: Dict[Tuple[int, int], _families.BlockInputs] = {}  #: of the layers that have begun, (transformer, layer)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        handles: List[Any] = []
        try:
            _attach(self)
            for index, blocks in enumerate(self.blocks):
                for layer, block in enumerate(blocks):
                    inputs = self._inputs[index, layer] = _families.BlockInputs()
                    handles += self.family.watch(block, inputs)
            yield
        finally:
            for handle in handles:
                handle.remove()
            detach(self)

    def probe(self, prompt: str, call: Mapping[str, Any]) -> Tuple[RunFacts, torch.device]:
        """What the pipe's runs are like, as it says at its first forward: size, noise levels, guidance."""
        self._run = None
        shown = getattr(self.pipe, "_progress_bar_config", {})
        self.pipe.set_progress_bar_config(**{**shown, "disable": True})
        try:
            self._call(prompt, 0, call)
        except _Probed as probed:
            self._run = probed.run
            return probed.run, probed.device
        finally:
            self.pipe._progress_bar_config = shown
        raise _errors.Unsupported("the pipe made a video without calling its transformer; calibration cannot see its attention")

    def run_prompt(self, index: int, prompt: str, seed: int, session: Session, call: Mapping[str, Any], bar: Any) -> float:
        """One prompt from its first step to its last. Returns the seconds of its denoising."""
        assert self._run is not None
        bar.n = index
        bar.refresh()
        self._session, self._began, self._step, self._expected = session, 0.0, -1, None
        self._order = Order(session.token_order(self._run.grid[0] * self._run.grid[1] * self._run.grid[2]))
        try:
            self._call(prompt, seed, call)
            if torch.cuda.is_available() and torch.cuda.is_initialized():
                torch.cuda.synchronize()
            return time.perf_counter() - self._began
        finally:
            self._session = None
            for inputs in self._inputs.values():
                inputs.clear()

    def _call(self, prompt: str, seed: int, call: Mapping[str, Any]) -> None:
        self.pipe(prompt=prompt, generator=torch.Generator("cpu").manual_seed(seed), output_type="latent", **call)

    def begin_forward(self, binding: Binding, grid: Grid, x: torch.Tensor) -> None:
        if self._run is None:
            raise _Probed(self.family.run_facts(self.pipe, grid, len(self.blocks[0]), self._fingerprints), x.device)
        if grid != self._run.grid:
            raise _errors.Mismatch(f"the calibration is of a latent grid of {self._run.grid}, and this forward has {grid}")
        self._began = self._began or time.perf_counter()
        before = self._step
        self._require_whole_forward()
        self._step, branch = step_of(self.pipe, binding)
        if self._step > before + 1:
            raise _errors.Unsupported(f"step {before + 1} was left out, as step caches do; switch that off: calibration needs every step")
        self._binding, self._attended, self._expected = binding, 0, len(self.blocks[binding.index]) * (x.shape[0] if self.family.joint else 1)
        if not self.family.joint:
            self._active().begin_forward(self._step, branch)

    def _require_whole_forward(self) -> None:
        """Told at once, where the session would tell at the end of the prompt."""
        if self._expected is None or self._attended == self._expected:
            return
        raise _errors.Unsupported(f"a forward of step {self._step} called {self._attended} of {self._expected} self-attentions: something leaves out "
                                  "layers, as step caches do; switch it off, since calibration needs every one")  # fmt: skip

    def _active(self) -> Session:
        if self._session is None:
            raise _errors.UsageError("a transformer that is being calibrated was called by something else; wait until calibrate is done")
        return self._session

    def order(self) -> Order:
        assert self._order is not None
        return self._order

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, sample: Optional[Sample]) -> None:
        session = self._active()
        self._attended += 1
        if sample is not None:
            session.begin_forward(self._step, self.family.branch_of_sample(self.pipe, sample))
        assert self._binding is not None
        inputs = self._inputs[self._binding.index, layer]
        output = None
        if session.wants_output():
            output = self.family.output_facts(self.blocks[self._binding.index][layer], inputs, out, sample[0] if sample else 0)
        session.attend(layer, q, k, v, out, output)
