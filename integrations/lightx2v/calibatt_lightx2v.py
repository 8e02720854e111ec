"""calibatt as an attention operator of LightX2V: "self_attn_1_type": "calibatt". See README.md.

CALIBATT_PLAN=plan.safetensors python -m calibatt_lightx2v --model_cls wan2.1 --task t2v …
"""

from __future__ import annotations

import atexit
import os
import runpy
from typing import Any, Optional

import torch
from loguru import logger

import calibatt
from calibatt._plan import nearest_transformers
from calibatt._session import DTYPES, RunFacts, Session
from lightx2v.utils.registry_factory import ATTN_WEIGHT_REGISTER

try:
    from lightx2v.common.ops.attn.template import AttnWeightTemplate
except ImportError:  # before it had a file of its own
    from lightx2v.common.ops.attn.attn_weight import AttnWeightTemplate

PLAN, ON_MISMATCH = "CALIBATT_PLAN", "CALIBATT_ON_MISMATCH"


def _setting(config: Any, name: str) -> Any:
    """A configuration is a dictionary in some versions, and an object in others."""
    return config[name] if isinstance(config, dict) else getattr(config, name)


class Run:
    """The session of the run that a scheduler is in. Runs of one process come one after the other."""

    def __init__(self) -> None:
        self.plan: Optional[calibatt.Plan] = None
        self.session: Optional[Session] = None
        self.facts: Optional[RunFacts] = None
        self.dense = ""  # why everything is dense
        self.order: Optional[tuple[torch.Tensor, torch.Tensor]] = None
        self.place: tuple[int, int, int] = (-1, 0, 0)  # step, branch, block of the last call

    def ready(self, scheduler: Any, device: torch.device) -> None:
        """A session for what the scheduler does now. Raises Mismatch, NotFound."""
        facts = self._facts(scheduler)
        if facts == self.facts:
            return
        self.close()
        on_mismatch = os.environ.get(ON_MISMATCH, "refuse")
        if on_mismatch not in ("refuse", "dense", "error"):  # the last: what "refuse" was called
            raise calibatt.UsageError(f"calibatt: {ON_MISMATCH} is {on_mismatch!r}; it may be refuse or dense")
        self.session = Session.open(self.plan, facts, device, on_mismatch)
        self.facts, self.place = facts, (-1, 0, 0)
        self.dense = self.session.report().get("fallback_reason") or ""
        order = self.session.token_order(_num_tokens(facts))
        raster = torch.equal(order, torch.arange(len(order)))
        self.order = None if raster else (order.to(device), order.argsort().to(device))
        logger.info("calibatt: {}", f"dense: {self.dense}" if self.dense else self.plan.describe())

    def _facts(self, scheduler: Any) -> RunFacts:
        if self.plan is None:
            path = os.environ.get(PLAN)
            if not path:
                raise calibatt.UsageError(f"calibatt: no plan; set {PLAN} to the plan's path")
            self.plan = calibatt.Plan(path)
        config = scheduler.config
        heads, dim = _setting(config, "num_heads"), _setting(config, "dim")
        sigmas = tuple(float(sigma) for sigma in scheduler.sigmas)[: scheduler.infer_steps]
        patch = getattr(scheduler, "patch_size", None) or _setting(config, "patch_size")
        grid = tuple(-(-size // each) for size, each in zip(scheduler.latents.shape[-3:], patch))
        count = len(self.plan.transformers)
        return RunFacts(
            grid=grid,
            num_heads=heads,
            head_dim=dim // heads,
            num_layers=_setting(config, "num_layers"),
            sigmas=sigmas,
            step_transformer=nearest_transformers(self.plan, sigmas) if count > 1 else (),
            transformer_names=("",) * count,
            fingerprints=(None,) * count,
        )

    def attend(self, scheduler: Any, block: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q, k, v: [B, tokens, heads, head_dim]; gives the same."""
        self.ready(scheduler, q.device)
        _require(q, k, self.facts)
        if self.dense:
            return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        step, branch = int(scheduler.step_index), 0 if getattr(scheduler, "infer_condition", True) else 1
        if (step, branch) != self.place[:2] or block <= self.place[2]:
            self.session.begin_forward(step, branch)
        self.place = (step, branch, block)
        if self.order is not None:
            q, k, v = (x.index_select(1, self.order[0]) for x in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        self.session.attend(block, q, k, v, out)
        return out if self.order is None else out.index_select(1, self.order[1])

    def close(self) -> None:
        if self.session is not None:
            if not self.dense:
                logger.info("calibatt: density {:.3f}", self.session.report()["density"])
            self.session.close()
        self.session = self.facts = None


def _num_tokens(facts: RunFacts) -> int:
    frames, height, width = facts.grid
    return frames * height * width


def _require(q: torch.Tensor, k: torch.Tensor, facts: RunFacts) -> None:
    if q.shape[1] != k.shape[1] or q.shape[1] != _num_tokens(facts):
        raise calibatt.Unsupported(
            f"calibatt: {q.shape[1]} queries and {k.shape[1]} keys, and the video has {_num_tokens(facts)} tokens: cross-attention, reference"
            ' frames and sequence parallelism by ring do not combine with a plan; only "self_attn_1_type" may be "calibatt"'
        )
    if q.shape[2] != facts.num_heads:
        raise calibatt.Unsupported(
            f"calibatt: {q.shape[2]} of the model's {facts.num_heads} heads: head and tensor parallelism do not combine with a plan; run on one GPU"
        )
    if q.dtype not in DTYPES:
        raise calibatt.Unsupported(f"calibatt: attention in {q.dtype} is not supported; use bf16, fp16 or fp32")


RUN = Run()
atexit.register(RUN.close)


@ATTN_WEIGHT_REGISTER("calibatt")
class CalibattWeight(AttnWeightTemplate):
    def __init__(self) -> None:
        self.config = {}

    @torch.compiler.disable
    def apply(self, q, k, v, cu_seqlens_q=None, cu_seqlens_kv=None, max_seqlen_q=None, max_seqlen_kv=None, scheduler=None, block_idx=None, **kwargs):
        """[tokens, heads, head_dim] or [B, tokens, heads, head_dim] → [B · tokens, heads · head_dim]."""
        if scheduler is None or block_idx is None:
            raise calibatt.Unsupported(
                "calibatt: this LightX2V does not tell its attention operators the step and the block (scheduler=, block_idx=); update LightX2V"
            )
        if kwargs.get("attn_mask") is not None or kwargs.get("causal"):
            raise calibatt.Unsupported("calibatt: masked and causal self-attention do not combine with a plan; use a model without them")
        q, k, v = (x.unsqueeze(0) if x.ndim == 3 else x for x in (q, k, v))
        return RUN.attend(scheduler, int(block_idx), q, k, v).flatten(2).flatten(0, 1)


if __name__ == "__main__":
    import calibatt_lightx2v  # noqa: F401 - registers itself under its own name, once

    runpy.run_module("lightx2v.infer", run_name="__main__", alter_sys=True)
