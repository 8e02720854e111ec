"""Sessions in pure torch: the same interface as calibatt._session.Session, by tools/plan_reader.py's masks and torch's softmax.

An oracle for the C library, which computes the same by other code, and what the package's own logic is tested with where no library is.
"""

import sys
from pathlib import Path

import torch

import calibatt
from calibatt import _library
from calibatt._session import StepRule

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import plan_reader  # noqa: E402


def order_of(plan):
    return torch.tensor(plan.raster_of_position)


class StandInPlan:
    """Of calibatt.Plan what the package uses."""

    def __init__(self, path):
        self.path = str(path)
        self.read = plan_reader.read_plan(self.path)
        g, info = self.read.geometry, self.read.info
        self.grid, self.sigmas = (g["frames"], g["height"], g["width"]), self.read.sigmas
        self.num_layers, self.num_heads, self.head_dim = info["num_layers"], g["heads"], g["head_dim"]
        self.transformers, self.step_transformer = self.read.transformers, self.read.step_transformer
        self.density = self.read.density()

    def describe(self):
        return plan_reader.summary(self.read)


class StandInSession:
    opened = []

    def __init__(self, plan, run, on_mismatch):
        self.plan, self.run, self.dense = plan, run, plan is None
        self.calls, self.begun, self.pairs = 0, [], [0, 0]
        StandInSession.opened.append(self)
        if plan is None:
            return
        for name, theirs, ours in [
            ("grid", plan.grid, run.grid),
            ("heads", (plan.num_heads, plan.head_dim), (run.num_heads, run.head_dim)),
            ("layers", plan.num_layers, run.num_layers),
            ("transformers", len(plan.transformers), len(run.fingerprints)),
            ("video", (plan.read.info["provenance"]["video_frames"],), run.video[:1]),
            *(("weights", t["fingerprint"], f) for t, f in zip(plan.transformers, run.fingerprints) if f),
        ]:
            if theirs == ours or (name == "video" and ours == (0,)) or (name == "weights" and on_mismatch == "warn"):
                continue
            if on_mismatch != "dense":
                raise calibatt.Mismatch(f"the plan was made for {name} {theirs}, this run has {ours}")
            self.dense = True

    @classmethod
    def open(cls, plan, run, device, on_mismatch="refuse", reuses_steps=False):
        return cls(plan, run, on_mismatch)

    def close(self):
        pass

    def wants_output(self):
        return False

    def step_rules(self, num_steps):
        return [StepRule("forward")] * num_steps

    def token_order(self, num_tokens):
        return torch.arange(num_tokens) if self.dense else order_of(self.plan.read)

    def begin_forward(self, step, branch):
        self.step = step
        self.begun.append((step, branch))

    def entry(self):
        read, run = self.plan.read, self.run
        transformer = run.step_transformer[self.step] if run.step_transformer else 0
        same = [s for s in range(len(read.sigmas)) if read.step_transformer[s] == transformer]
        return read.step_entry[min(same, key=lambda s: abs(read.sigmas[s] - run.sigmas[self.step]))]

    def attend(self, layer, q, k, v, out, output=None):
        self.calls += 1
        if self.dense:
            result = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
            out.copy_(result.transpose(1, 2))
            return
        for sample in range(q.shape[0]):
            for head in range(q.shape[2]):
                out[sample, :, head] = planned_head(self.plan.read, self.entry(), layer, head, q[sample, :, head], k[sample, :, head], v[sample, :, head])

    def report(self):
        density = 1.0 if self.dense else self.plan.density
        return {"calls": self.calls, "density": density, "dense_fallback_calls": self.calls if self.dense and self.plan else 0,
                "fallback_reason": "the plan does not fit" if self.dense and self.plan else "", "warnings": [], "kernel": "torch", "mask_bytes": 0}  # fmt: skip


def planned_head(plan, entry, layer, head, q, k, v):
    """softmax(q kᵀ / √d) v of one head by the plan (docs/plan_format.md). q, k, v: [video tokens, then text, head_dim], in the plan's order."""
    block_q, block_k = plan.geometry["block_q"], plan.geometry["block_k"]
    video, total = plan.num_tokens, q.shape[0]
    kind = plan.kind(entry, layer, head)
    anchored = kind & plan_reader.ANCHORED
    queries = (plan.query_tokens if anchored else list(range(video))) + list(range(video, total))
    num_video_queries = len(queries) - (total - video)
    mask = torch.tensor(plan.mask(entry, layer, head), dtype=torch.bool)
    num_blocks = -(-total // block_k)
    kept = torch.zeros(-(-len(queries) // block_q), num_blocks, dtype=torch.bool)
    kept[: mask.shape[0], : mask.shape[1]] = mask
    if total > video:
        kept[num_video_queries // block_q :] = True  # blocks with queries of text
        kept[:, video // block_k :] = True  # blocks with keys of text
    starts = range(0, total, block_k)
    sizes = torch.tensor([min(block_k, total - start) for start in starts])
    q, keys, values = q.double()[queries], k.double(), v.double()
    means = [torch.stack([x[start : start + block_k].mean(0) for start in starts]) for x in (keys, values)]
    all_keys, all_values = torch.cat((keys, means[0])), torch.cat((values, means[1]))
    logits = q @ all_keys.T * q.shape[-1] ** -0.5
    logits[:, total:] += sizes.double().log()
    row_kept = kept.repeat_interleave(block_q, 0)[: len(queries)]
    summaries = ~row_kept if plan.info["summarize_skipped"] else torch.zeros_like(row_kept)
    seen = torch.cat((row_kept.repeat_interleave(block_k, 1)[:, :total], summaries), 1)
    result = (logits.masked_fill(~seen, float("-inf")).softmax(-1) @ all_values).to(v.dtype)
    return result[list(plan.source_of) + list(range(num_video_queries, len(queries)))] if anchored else result
