#!/usr/bin/env python3
"""Does it pay to choose 8 bits by layer or by head, and not by step alone? Measured in torch and diffusers with simulated 8 bits: the roundings of
docs/decisions/0007 and 0008, in float32 arithmetic (docs/decisions/0010, "By layer and by head").

    python bench/python/eight_bits_where.py --device cuda --output where.json

1. What 8 bits in one head, one layer or one kind of linear layer alone change of a guided prediction, at steps of dense runs (relative to the final latents).
2. What 8 bits in one step alone change of the final latents, over what they change of that step's prediction: the weight of the step.
3. From both, on prompts of calibration: which (step), (step, layer) or (step, layer, head) are in 8 bits if a share of all may be: those that harm least.
4. Held-out prompts run so; PSNR of the video to the same without 8 bits.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanPipeline

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "self": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    "cross": ("attn2.to_q", "attn2.to_out.0"),
    "up": ("ffn.net.0.proj",),
    "down": ("ffn.net.2",),
}

COSTS = {"self": 4, "cross": 2, "up": 4, "down": 4}  # of tiny-wan's linear layers
# Of plans of 16 prompts (bench/results), for 20 steps, with what is tried beside them.
SCHEDULES = {
    ".......r.l.lh.l.hl..": ("attention", "layers"),
    "......r.rlh.llh.ll..": ("attention",),
    "....r.rrr.rrlhhhh.l.": ("attention",),
    ".......h.lr.llh.hl..": (),
    "......r.rlr.llhhh.l.": (),
}


def e4m3(x):
    return x.to(torch.float8_e4m3fn).float()


def rows_e4m3(x):
    """A scale for each row."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-20) / 448
    return e4m3(x / scale) * scale


def int8(x, dims):
    scale = x.abs().amax(dims, keepdim=True).clamp_min(1e-20) / 127
    return torch.round(x / scale), scale


def attention_8(q, k, v):
    """[heads, tokens, channels] each, as docs/decisions/0008 says."""
    tokens = k.shape[1]
    q, q_scale = int8(q, -1)
    k = k - k.mean(1, keepdim=True)
    k = F.pad(k, (0, 0, 0, -tokens % 64)).unflatten(1, (-1, 64))
    k, k_scale = int8(k, (2, 3))
    k, k_scale = k.flatten(1, 2)[:, :tokens], k_scale.expand(-1, -1, 64, -1).flatten(1, 2)[:, :tokens]
    v_mean = v.mean(1, keepdim=True)
    v = v - v_mean
    v_scale = v.abs().amax(1, keepdim=True).clamp_min(1e-20) / 448
    v = e4m3(v / v_scale)
    scores = (q @ k.transpose(1, 2)) * (k_scale.transpose(1, 2) * (k.shape[-1] ** -0.5)) * q_scale
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    weights = e4m3(weights * (448 / weights.sum(-1, keepdim=True)).clamp_max(256))
    return (weights @ v) / weights.sum(-1, keepdim=True) * v_scale + v_mean - v.mean(1, keepdim=True) * v_scale


class Model:
    """The transformer of a WanPipeline, from block to block; attention and linear layers in 8 bits where they are told."""

    def __init__(self, transformer):
        self.transformer, self.blocks = transformer, transformer.blocks
        self.heads = transformer.config.num_attention_heads
        for block in self.blocks:
            for kind, names in KINDS.items():
                for name in names:
                    self._prepare(block.get_submodule(name), block, kind)
            block.eight, block.eight_heads = set(), None

    @staticmethod
    def _prepare(linear, block, kind):
        weight = rows_e4m3(linear.weight)
        plain = linear.forward
        linear.forward = lambda x: F.linear(rows_e4m3(x), weight, linear.bias) if kind in block.eight else plain(x)

    def begin(self, latents, timestep, prompt):
        t = self.transformer
        rope = t.rope(latents)
        x = t.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()
        temb, modulation, prompt, _ = t.condition_embedder(timestep.expand(len(latents)), prompt, None)
        return x, (temb, modulation.unflatten(1, (6, -1)), prompt, rope, latents.shape)

    def heads_of(self, block, x, state):
        """→ q, k, v: [batch, heads, tokens, channels]."""
        _, modulation, _, (cos, sin), _ = state
        shift, scale = (block.scale_shift_table + modulation).unbind(1)[:2]
        x = block.norm1(x) * (1 + scale[:, None]) + shift[:, None]
        a = block.attn1

        def rotated(y):
            y = y.unflatten(2, (self.heads, -1))
            even, odd = y[..., 0::2], y[..., 1::2]
            c, s = cos[..., 0::2], sin[..., 1::2]
            return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2).transpose(1, 2)

        return rotated(a.norm_q(a.to_q(x))), rotated(a.norm_k(a.to_k(x))), a.to_v(x).unflatten(2, (self.heads, -1)).transpose(1, 2)

    def attention(self, q, k, v, eight=None):
        """eight: heads. → [batch, tokens, heads · channels]"""
        eight = eight or []
        out = F.scaled_dot_product_attention(q, k, v) if len(eight) < self.heads else torch.empty_like(q)
        for i in range(len(q)):
            if eight:
                out[i, eight] = attention_8(q[i, eight], k[i, eight], v[i, eight])
        return out

    def rest(self, block, x, attended, state):
        _, modulation, prompt, _, _ = state
        _, _, gate, shift, scale, ffn_gate = (y[:, None] for y in (block.scale_shift_table + modulation).unbind(1))
        x = x + block.attn1.to_out[0](attended.transpose(1, 2).flatten(2)) * gate
        x = x + block.attn2(block.norm2(x), prompt, None, None)
        return x + block.ffn(block.norm3(x) * (1 + scale) + shift) * ffn_gate

    def block(self, block, x, state):
        return self.rest(block, x, self.attention(*self.heads_of(block, x, state), block.eight_heads), state)

    def end(self, x, state):
        t = self.transformer
        temb, _, _, _, (batch, _, frames, height, width) = state
        shift, scale = (t.scale_shift_table + temb[:, None]).chunk(2, 1)
        x = t.proj_out(t.norm_out(x) * (1 + scale) + shift)
        p = t.config.patch_size
        x = x.reshape(batch, frames // p[0], height // p[1], width // p[2], *p, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def set(self, layers=(), heads=()):
        """layers: (block, kind) in 8 bits; heads: (block, head)."""
        for i, block in enumerate(self.blocks):
            block.eight = {kind for b, kind in layers if b == i}
            block.eight_heads = [h for b, h in heads if b == i]

    def forward(self, latents, timestep, prompt, first=0, x=None, keep=None):
        start, state = self.begin(latents, timestep, prompt)
        x = start if x is None else x
        for block in self.blocks[first:]:
            if keep is not None:
                keep.append(x)
            x = self.block(block, x, state)
        return self.end(x, state)


class State(NamedTuple):
    step: int
    latents: torch.Tensor
    scheduler: object
    history: list
    timestep: torch.Tensor
    text: torch.Tensor
    prediction: torch.Tensor


class Runs:
    def __init__(self, args):
        self.args, self.device = args, args.device
        self.pipe = WanPipeline.from_pretrained(args.model, dtype=torch.float32).to(args.device)
        self.pipe.transformer.requires_grad_(False)
        self.model = Model(self.pipe.transformer)
        self.blocks, self.heads = len(self.model.blocks), self.model.heads
        self.all_heads = [(b, h) for b in range(self.blocks) for h in range(self.heads)]
        self.all_layers = [(b, kind) for b in range(self.blocks) for kind in KINDS]

    def begin(self, prompt, seed):
        text, none = self.pipe.encode_prompt(prompt, negative_prompt="", max_sequence_length=512, device=self.device)
        shape = (1, 16, (self.args.frames - 1) // 4 + 1, 32, 32)
        latents = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).to(self.device)
        return torch.cat([text, none]), latents

    def guided(self, both):
        text, none = both.chunk(2)
        return none + self.args.guidance * (text - none)

    def run(self, prompt, seed, eight=lambda step: ((), ()), reuse="", start=None, visit=None):
        """reuse: of each step ".", or "h", "r", "l" for hold, residual, linear (docs/decisions/0006). visit(State) before each forward's solver step;
        start: a State to go on from."""
        text, latents = self.begin(prompt, seed)
        scheduler, history, first = copy.deepcopy(self.pipe.scheduler), [], 0
        scheduler.set_timesteps(self.args.num_steps, device=self.device)
        if start:
            first, latents, scheduler, history = start.step, start.latents, copy.deepcopy(start.scheduler), list(start.history)
        for step in range(first, self.args.num_steps):
            t, way = scheduler.timesteps[step], (reuse or "." * self.args.num_steps)[step]
            if way == ".":
                layers, heads = eight(step)
                self.model.set(layers, heads)
                prediction = self.guided(self.model.forward(latents.expand(2, -1, -1, -1, -1), t, text))
                if visit:
                    visit(State(step, latents, copy.deepcopy(scheduler), list(history), t, text, prediction))
                history.append((prediction, latents, scheduler.sigmas[step]))
            else:
                prediction, then, sigma = history[-1]
                if way == "r":
                    prediction = prediction + latents - then
                if way == "l":
                    before, _, sigma_before = history[-2]
                    prediction = prediction + (prediction - before) * (scheduler.sigmas[step] - sigma) / (sigma - sigma_before)
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
        self.model.set()
        return latents

    def weights(self, prompt, seed, reuse):
        """Of each step with a forward: the mean square of what its attention in 8 bits changes at the end, over that of its prediction's own change."""
        states, weights = [], np.zeros(self.args.num_steps)
        final = self.run(prompt, seed, reuse=reuse, visit=states.append)
        for state in states:
            changed = []
            end = self.run(prompt, seed, lambda step: ((), self.all_heads if step == state.step else ()), reuse, state, lambda s: changed or changed.append(s))
            weights[state.step] = ((end - final).square().mean() / (changed[0].prediction - state.prediction).square().mean()).item()
        return weights.tolist()

    def video(self, latents):
        vae = self.pipe.vae
        mean = torch.tensor(vae.config.latents_mean, device=self.device).view(1, -1, 1, 1, 1)
        std = torch.tensor(vae.config.latents_std, device=self.device).view(1, -1, 1, 1, 1)
        return vae.decode(latents * std + mean, return_dict=False)[0].clamp(-1, 1)

    def changes(self, latents, t, text, norm):
        """Of one step's prediction by 8 bits in each head, layer and kind alone: root mean square over that of the final latents."""
        both, kept, m = latents.expand(2, -1, -1, -1, -1), [], self.model
        m.set()
        plain = self.guided(m.forward(both, t, text, keep=kept))
        _, state = m.begin(both, t, text)

        def change(xs):  # a list of [2, tokens, channels] behind the block that differs
            return [((self.guided(y) - plain).square().mean().sqrt() / norm).item() for y in xs]

        def ends(b, xs):
            return [m.forward(both, t, text, b + 1, x) for x in xs]

        found = {"head": [], "attention": [], "kind": [], "layers": []}
        for b, block in enumerate(m.blocks):
            q, k, v = m.heads_of(block, kept[b], state)
            exact = m.attention(q, k, v)
            rounded = m.attention(q, k, v, list(range(self.heads)))
            outs = []
            for h in range(self.heads):
                out = exact.clone()
                out[:, h] = rounded[:, h]
                outs.append(m.rest(block, kept[b], out, state))
            outs.append(m.rest(block, kept[b], rounded, state))
            each = change(ends(b, outs))
            found["head"].append(each[:-1])
            found["attention"].append(each[-1])
            outs = []
            for kinds in [[kind] for kind in KINDS if self.args.kinds] + [list(KINDS)]:
                block.eight = set(kinds)
                outs.append(m.block(block, kept[b], state))
                block.eight = set()
            each = change(ends(b, outs))
            found["kind"].append(each[:-1])
            found["layers"].append(each[-1])
        for name, what in (("all_attention", ((), self.all_heads)), ("all_layers", (self.all_layers, ()))):
            m.set(*what)
            found[name] = change([m.forward(both, t, text)])[0]
            m.set()
        return found


def harm(measured, what, weights):
    """[forwards, blocks, heads or kinds]: mean square over the prompts, of the end of the run; steps between the measured ones by the logarithm."""
    steps = sorted({m["step"] for m in measured})
    rows = np.array([np.mean([np.square(m[what]) for m in measured if m["step"] == s], axis=0) for s in steps])
    ran = np.flatnonzero(weights)
    flat = rows.reshape(len(steps), -1)
    flat = np.stack([np.exp(np.interp(ran, steps, np.log(flat[:, i]))) for i in range(flat.shape[1])], 1)
    return ran, flat.reshape(len(ran), *rows.shape[1:]) * weights[ran][:, None, None]


def least(errors, costs, share):
    """True where the errors are least for what they save, of a share of all costs at most."""
    order = np.argsort(errors / costs, axis=None)
    chosen = np.zeros(errors.size, bool)
    chosen[order] = np.cumsum(np.broadcast_to(costs, errors.shape).flat[order]) <= share * np.broadcast_to(costs, errors.shape).sum() + 1e-9
    return chosen.reshape(errors.shape)


def schemes(errors, costs, share):
    """errors: [steps, blocks, heads or kinds], costs of the last → by name what is in 8 bits, a share of all that is a number of whole steps."""
    share = round(share * len(errors)) / len(errors)
    return {
        "step": np.broadcast_to(least(errors.sum((1, 2), keepdims=True), 1, share), errors.shape),
        "step and layer": np.broadcast_to(least(errors.sum(2, keepdims=True), 1, share), errors.shape),
        "step, layer and part": least(errors, costs, share),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/tiny-wan")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=lambda s: [int(i) for i in s.split(",")], default=[0, 1, 2, 3, 5, 8, 11, 14, 17, 19])
    parser.add_argument("--prompts", type=int, default=4, help="of calibration, that are measured [4]")
    parser.add_argument("--held-out", type=int, default=16, help="that run [16]")
    parser.add_argument("--shares", type=lambda s: [float(i) for i in s.split(",")], default=[0.5, 0.75])
    parser.add_argument("--measured", type=Path, help="an earlier result: its prompts are not measured again")
    parser.add_argument("--kinds", action="store_true", help="also each kind of linear layer alone")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after these")
    parser.add_argument("--output", type=Path, default=Path("eight_bits_where.json"))
    args = parser.parse_args()
    begin = time.monotonic()
    left = lambda: args.seconds - (time.monotonic() - begin)
    runs = Runs(args)
    result = {"args": {k: str(v) for k, v in vars(args).items()}, "measured": [], "weights": {}, "chosen": {}, "runs": []}
    if args.measured:
        earlier = json.loads(args.measured.read_text())
        result.update({name: earlier[name] for name in ("measured", "weights")})
    save = lambda: args.output.write_text(json.dumps(result))
    calibration = (args.model / "prompts/calibration_prompts.txt").read_text().splitlines()[: args.prompts]
    held_out = (args.model / "prompts/heldout.txt").read_text().splitlines()[: args.held_out]

    schedules = SCHEDULES if args.num_steps == 20 else {"": ("attention", "layers")}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for number, prompt in enumerate(calibration):
        states = {}
        if not args.measured:
            final = runs.run(prompt, number, visit=lambda state: states.__setitem__(state.step, state))
            norm = final.square().mean().sqrt()
        for step in args.steps:
            if left() < 0 or args.measured:
                break
            state = states[step]
            result["measured"].append({"prompt": number, "step": step, **runs.changes(state.latents, state.timestep, state.text, norm)})
            save()
            print(f"prompt {number}, step {step}: {time.monotonic() - begin:.0f} s", flush=True)
        for reuse, parts in schedules.items():
            if parts and args.held_out and len(result["weights"].get(reuse, [])) <= number:
                result["weights"].setdefault(reuse, []).append(runs.weights(prompt, number, reuse))
        save()
        print(f"prompt {number}, weights: {time.monotonic() - begin:.0f} s", flush=True)

    kinds = list(KINDS)
    plans = {}
    for reuse, parts in schedules.items():
        name = f"{reuse.count('.') if reuse else args.num_steps} forwards"
        plans[name] = (reuse, "attention", {})
        for part in parts:
            if reuse not in result["weights"] or (part == "layers" and not args.kinds):
                continue
            all_weights = np.array(result["weights"][reuse])
            weights = np.where(all_weights[0] > 0, np.exp(np.log(np.maximum(all_weights, 1e-30)).mean(0)), 0)
            ran, errors = harm(result["measured"], {"attention": "head", "layers": "kind"}[part], weights)
            costs = np.array(list(COSTS.values())) if part == "layers" else np.ones(errors.shape[2])
            chosen = {f"{share} by {scheme}": places for share in args.shares for scheme, places in schemes(errors, costs, share).items()}
            chosen["1"] = np.ones(errors.shape, bool)
            chosen["rule"] = np.broadcast_to((ran >= args.num_steps // 4)[:, None, None], errors.shape)
            for way, places in chosen.items():
                plans[f"{name}, {part} {way}"] = (reuse, part, dict(zip(ran.tolist(), places)))
                result["chosen"][f"{name}, {part} {way}"] = {"expected": float(errors[places].sum()), "share": float(places.mean())}
    save()

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # of both that are compared
    for number, prompt in enumerate(held_out):
        dense = runs.video(runs.run(prompt, 1000 + number))
        row = {}
        for name, (reuse, part, places) in plans.items():
            if left() < 0:
                break
            of_step = lambda s: [(b, p if part == "attention" else kinds[p]) for b, p in np.argwhere(places.get(s, np.zeros((0, 0)))).tolist()]
            video = runs.video(runs.run(prompt, 1000 + number, lambda s: ((), of_step(s)) if part == "attention" else (of_step(s), ()), reuse))
            row[name] = min(100, -10 * np.log10(max(1e-10, ((video - dense) / 2).square().mean().item())))
        if len(row) == len(plans):
            result["runs"].append(row)
            save()
            print(f"held-out {number}: {time.monotonic() - begin:.0f} s", flush=True)
    for name in plans:
        values = [r[name] for r in result["runs"]]
        expected = result["chosen"].get(name, {}).get("expected")
        if values:
            print(f"{name:60} median {np.median(values):6.2f}  worst {np.min(values):6.2f}" + (f"  expected {expected:.2e}" if expected else ""))


if __name__ == "__main__":
    with torch.no_grad():
        main()
