"""Steps that run no forward: their predictions are made from those of earlier steps."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any, Callable, Dict, Hashable, NamedTuple, Optional, Sequence, Tuple

import torch

from . import _errors
from ._session import StepRule


class _Kept(NamedTuple):
    latents: Optional[torch.Tensor]  #: None where no step asks for them
    prediction: torch.Tensor


class StepPredictor:
    """Predictions of one run's steps by the rules of its session. Branches of guidance are predicted each by itself: rules are linear and
    their weights add up to 1, so that the guided prediction is what the same rule makes of guided predictions.
    """

    def __init__(self, rules: Sequence[StepRule], sign: float = 1.0):
        """sign: 1 of a model that predicts noise − data, −1 of one that predicts data − noise."""
        self.rules, self._sign = rules, sign
        self._last_use = {source: step for step, rule in enumerate(rules) for source in rule.sources}
        self._with_latents = {rule.sources[0] for rule in rules if rule.latents_weight}
        self._kept: Dict[Tuple[int, Hashable], _Kept] = {}
        self.reused: Dict[int, str] = {}  #: steps of this run that ran no forward, and how they were predicted

    def begin_run(self) -> None:
        self._kept, self.reused = {}, {}

    def reuses(self, step: int) -> bool:
        return bool(self.rules[step].sources)

    def computed(self, step: int, branch: Hashable, latents: torch.Tensor, prediction: torch.Tensor) -> None:
        """Of a step that runs: what the transformer gave at these latents. Both are copied, where a later step is made from them."""
        if step in self._last_use:
            self._kept[step, branch] = _Kept(latents.clone() if step in self._with_latents else None, prediction.clone())

    def predicted(self, step: int, branch: Hashable, latents: torch.Tensor) -> torch.Tensor:
        """Of a step that does not. Raises Unsupported where a step that it is made from did not run."""
        rule = self.rules[step]
        kept = [self._source(step, source, branch, latents) for source in rule.sources]
        prediction = sum(weight * each.prediction.float() for weight, each in zip(rule.weights, kept))
        if rule.latents_weight:
            prediction = prediction + self._sign * rule.latents_weight * (latents.float() - kept[0].latents.float())
        for source in rule.sources:
            if self._last_use[source] == step:
                del self._kept[source, branch]
        self.reused[step] = rule.name
        return prediction.to(kept[0].prediction.dtype)

    def _source(self, step: int, source: int, branch: Hashable, latents: torch.Tensor) -> _Kept:
        kept = self._kept.get((source, branch))
        if kept is None:
            raise _errors.Unsupported(f"step {step} runs no forward by the plan and is made from step {source}, which did not run before it with the same prompt: "
                                      "something leaves out steps, or asks for one twice; switch it off, or use a plan of density alone")  # fmt: skip
        if kept.prediction.shape[0] != latents.shape[0]:
            raise _errors.Unsupported(f"step {step} is made from step {source} by the plan, and has a batch of {latents.shape[0]} where that had "
                                      f"{kept.prediction.shape[0]}; keep the batch as it is within a run")  # fmt: skip
        return kept


def described(reused: Dict[int, str], num_steps: int) -> str:
    """For people; empty where every step ran."""
    if not reused:
        return ""
    ways = ", ".join(f"{count} {name}" for name, count in sorted(Counter(reused.values()).items()))
    return f"{len(reused)} of {num_steps} without a forward ({ways})"


def take_calls(module: Any, call: Callable[..., Any]) -> Callable[[], None]:
    """module(…) becomes call(inner, …), inner being what it was. Returns what undoes it.

    torch asks for this attribute first, so hooks, compiled code and offloading are inside of inner: what does not call that streams nothing.
    """
    attributes = object.__getattribute__(module, "__dict__")  # torch.compile's wrapper passes on what is set in the usual way
    before = attributes.get("_compiled_call_impl")
    attributes["_compiled_call_impl"] = functools.partial(call, before if before is not None else module._call_impl)

    def give_back() -> None:
        if before is None:
            attributes.pop("_compiled_call_impl", None)
        else:
            attributes["_compiled_call_impl"] = before

    return give_back


def output_of(prediction: torch.Tensor) -> Any:
    """As a transformer of diffusers gives it."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=prediction)


def step_cache_of(name: str, transformer: Any) -> Optional[Tuple[str, str]]:
    """What leaves out forwards or layers of pipe.NAME, and what switches it off; None: nothing that is known."""
    if getattr(transformer, "is_cache_enabled", False):
        config = getattr(transformer, "_cache_config", None)
        return "a cache" if config is None else type(config).__name__, f"pipe.{name}.disable_cache()"
    return ("cache-dit", "cache_dit.disable_cache(pipe)") if getattr(transformer, "_is_cached", False) else None


def require_no_step_cache(name: str, transformer: Any) -> None:
    cache = step_cache_of(name, transformer)
    if cache is not None:
        raise _errors.Unsupported(f"the plan runs no forward in some steps, which it chose together, and pipe.{name} leaves out others by {cache[0]}; "
                                  f"call {cache[1]}, or use a plan of density alone")  # fmt: skip
