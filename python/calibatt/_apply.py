"""Plans on pipes: apply, describe, switch off, take away."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Union

import torch

from . import _errors, _families, _reuse, _weights
from ._plan import PathLike, Plan
from ._runtime import PlannedRuntime, Runtime
from ._session import RunFacts, Session, mismatch_choice


def apply(pipe: Any, plan: Union[PathLike, Plan], on_mismatch: str = "refuse", check_weights: Optional[bool] = None) -> Any:
    """Lets a pipe's self-attention run by a plan. Nothing else of the pipe changes, and no weight.

    >>> pipe = calibatt.apply(WanPipeline.from_pretrained(...), "plan.safetensors")
    >>> video = pipe(prompt, height=480, width=832, num_frames=81).frames[0]

    Args:
        pipe: diffusers' WanPipeline (Wan 2.1, Wan 2.2 from text; both transformers) or MochiPipeline. It may be compiled, offloaded,
            cast or have LoRAs, before or after. What cannot be combined is refused by name: Unsupported.
        plan: a file made by `calibrate`, `compile` or the command line, or a Plan.
        on_mismatch: what to do when the plan does not fit: "refuse" raises Mismatch naming both values; "warn" uses it when only weights
            differ, and says so; "dense" runs dense, and says so. What the pipe is decides at once; size and steps when it is called.
        check_weights: whether the transformers' weights are compared with those that the plan was made for, by the folder they were loaded
            from. True: yes, which may read tens of gigabytes, once. None: where that takes seconds. summary() tells.

    Returns pipe. Raises Unsupported, Mismatch, NotFound, FormatError.
    """
    on_mismatch = mismatch_choice(on_mismatch)
    family = _families.family_of(pipe)
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    transformers = family.transformers(pipe)
    if runtime_of(pipe) is not None:
        restore(pipe)
    for name, transformer in zip(family.transformer_names, transformers):
        _families.require_supported(family, name, transformer)
        if plan.reuses_steps:
            _reuse.require_no_step_cache(name, transformer)
    fingerprints, reasons = _fingerprints(pipe, family, plan, check_weights)
    runtime = PlannedRuntime(pipe, family, plan, on_mismatch, fingerprints)
    runtime.reasons = reasons
    _require_fit(runtime)
    _attach(runtime)
    return pipe


def _fingerprints(pipe: Any, family: _families.Family, plan: Plan, check: Optional[bool]) -> Any:
    fingerprints: List[Optional[str]] = []
    reasons: Dict[str, str] = {}
    likes = [each.get("fingerprint") or "" for each in plan.transformers]
    for index, (name, transformer) in enumerate(zip(family.transformer_names, family.transformers(pipe))):
        like = likes[index] if index < len(likes) else ""
        fingerprint, reason = _weights.compared(pipe, name, transformer, like, check, plan.facts["settings"].get("conditions", ""))
        fingerprints.append(fingerprint)
        if reason:
            reasons[name] = reason
    return fingerprints, reasons


def _require_fit(runtime: PlannedRuntime) -> None:
    """What can be judged before a run: the plan against the pipe at the plan's own size and steps, by the library's own judgement."""
    plan, family = runtime.plan, runtime.family
    transformers = family.transformers(runtime.pipe)
    config = transformers[0].config
    run = RunFacts(
        grid=plan.grid,
        num_heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        num_layers=len(family.blocks(transformers[0])),
        sigmas=tuple(plan.sigmas),
        step_transformer=tuple(min(index, len(transformers) - 1) for index in plan.step_transformer) if len(transformers) > 1 else (),
        transformer_names=family.names(runtime.pipe),
        fingerprints=runtime.fingerprints,
    )
    Session.open(plan, run, torch.device("cpu"), runtime.on_mismatch, reuses_steps=True).close()


def _attach(runtime: Runtime) -> None:
    _families.attach(runtime)
    runtime.with_pipe = weakref.finalize(runtime.pipe, _close, weakref.ref(runtime))  # what the sessions hold comes back with the pipe
    runtime.with_pipe.atexit = False
    _forget_compiled(runtime)


def _close(runtime: "weakref.ref[Runtime]") -> None:
    alive = runtime()
    if alive is not None:
        alive.close()


def _forget_compiled(runtime: Runtime) -> None:
    """torch.compile does not look at hooks that came or went since it compiled a module."""
    for name, transformer in zip(runtime.family.transformer_names, runtime.family.transformers(runtime.pipe)):
        wrapped = getattr(runtime.pipe, name) is not transformer
        if wrapped or any(getattr(module, "_compiled_call_impl", None) is not None for module in transformer.modules()):
            torch._dynamo.reset()
            return


def runtime_of(pipe: Any) -> Optional[Runtime]:
    """What is applied to the pipe's transformers; None: nothing."""
    for transformer in _families.family_of(pipe).transformers(pipe):
        context = transformer.__dict__.get("cache_context")
        if isinstance(context, _families._Context):
            return context._binding.runtime
    return None


def _planned(pipe: Any) -> PlannedRuntime:
    runtime = runtime_of(pipe)
    if not isinstance(runtime, PlannedRuntime):
        raise _errors.UsageError("no plan is applied to this pipe; call calibatt.apply(pipe, plan) first")
    return runtime


def restore(pipe: Any) -> Any:
    """Takes the plan away: the pipe then computes what it did before, bit for bit. Returns pipe. Without a plan it does nothing."""
    runtime = runtime_of(pipe)
    if runtime is not None:
        detach(runtime)
    return pipe


def detach(runtime: Runtime) -> None:
    for each in runtime.bindings:
        binding = each()
        if binding is not None:
            binding.detach()
    runtime.with_pipe.detach()
    runtime.close()
    with contextlib.suppress(_errors.UsageError):  # the pipe may be gone
        _forget_compiled(runtime)


@contextlib.contextmanager
def disabled(pipe: Any) -> Iterator[Any]:
    """Within it the pipe runs as without a plan, bit for bit; a compiled one compiles once more.

    >>> with calibatt.disabled(pipe):
    ...     dense = pipe(prompt).frames[0]
    """
    switch = _planned(pipe).switch
    before, switch.on = switch.on, False
    try:
        yield pipe
    finally:
        switch.on = before


@dataclass
class Summary:
    """What a plan is and what it did; str() of it is for people."""

    plan: str  #: path
    density: float  #: of the plan
    enabled: bool
    weights: Dict[str, str]  #: of each transformer: "the same", "other than …", or "not compared: " and why
    run: Optional[RunFacts] = None  #: the present or last run; None: there was none
    reports: List[Dict[str, Any]] = field(default_factory=list)  #: of its sessions, see calibatt_session_json
    description: str = ""  #: of the plan
    forwards: int = 0  #: calls of the run's transformers, each branch of guidance by itself where it is a call by itself
    step_reuse: Dict[int, str] = field(default_factory=dict)  #: steps of the run without a forward, and how each was predicted

    @property
    def reused_steps(self) -> Dict[str, int]:
        """How many steps ran no forward, by what they were made: "hold", "residual", "linear"."""
        return dict(Counter(self.step_reuse.values()))

    @property
    def calls(self) -> int:
        """Attention calls of the run."""
        return sum(report.get("calls", 0) for report in self.reports)

    @property
    def dense_fallback_calls(self) -> int:
        """Of them, those that ran dense since the plan did not fit."""
        return sum(report.get("dense_fallback_calls", 0) for report in self.reports)

    @property
    def density_of_run(self) -> Optional[float]:
        """Computed over all pairs of the calls so far."""
        weighed = [(report["density"], report["calls"]) for report in self.reports if report.get("calls")]
        return sum(density * calls for density, calls in weighed) / sum(calls for _, calls in weighed) if weighed else None

    def __str__(self) -> str:
        lines = [f"{self.plan}: density {self.density:.3f}" + ("" if self.enabled else ", switched off")]
        lines += ["  " + line for line in self.description.split("\n\n")[0].splitlines()]  # without the table of steps and layers
        lines += [f"weights of {name}: {state}" for name, state in self.weights.items()]
        if self.density_of_run is None:
            return "\n".join([*lines, "no attention ran yet"])
        frames, height, width = self.run.video if self.run else (0, 0, 0)
        lines.append(f"run: {len(self.run.sigmas) if self.run else 0} steps, {frames} frames of {width}×{height}: {self.calls} attention calls "
                     f"at density {self.density_of_run:.3f}, {self.dense_fallback_calls} of them dense since the plan did not fit")  # fmt: skip
        if self.step_reuse:
            lines.append(f"steps: {_reuse.described(self.step_reuse, len(self.run.sigmas) if self.run else 0)}, {self.forwards} forwards")
        planned = max((sum(parts != "none" for parts in report.get("planned_eight_bits", ())) for report in self.reports), default=0)
        if planned:
            lines.append(f"8 bits: the plan has them in {planned} steps; in a pipe all is computed in the model's own types")
        for key, label in (("step_mapping", "steps"), ("fallback_reason", "dense"), ("kernel", "kernel")):
            texts = dict.fromkeys(report[key] for report in self.reports if report.get(key))
            lines += [f"{label}: {text}" for text in texts]
        lines.append(f"masks: {sum(report.get('mask_bytes', 0) for report in self.reports) / 1e6:.1f} MB of the device")
        lines += [f"warning: {text}" for text in dict.fromkeys(text for report in self.reports for text in report.get("warnings", []))]
        return "\n".join(lines)


def summary(pipe: Any) -> Summary:
    """What the applied plan is and did in the present or last run. print() it, or read its fields. Raises UsageError without a plan."""
    runtime = _planned(pipe)
    plan, family = runtime.plan, runtime.family
    weights = {}
    for index, name in enumerate(family.transformer_names[: len(runtime.fingerprints)]):
        changed = _weights.reason_of_change(pipe, family.transformers(pipe)[index])
        if runtime.fingerprints[index] is None:
            reason = runtime.reasons[name]
            weights[name] = reason if reason == _weights.AS_MEASURED else "not compared: " + reason
        elif runtime.fingerprints[index] != plan.transformers[index]["fingerprint"]:
            weights[name] = "other than those that the plan was made for"
        else:
            weights[name] = "the same" + (f" as loaded, but {changed} since" if changed else "")
    return Summary(plan.path, plan.density, runtime.switch.on, weights, runtime.run, runtime.reports(),
                   plan.describe(), runtime.forwards, dict(runtime.predictor.reused))  # fmt: skip
