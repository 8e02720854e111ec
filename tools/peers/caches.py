"""Rules of other methods by which whole forwards are left out, each from its paper. A rule predicts the two branches of guidance of a batch.

TeaCache (arXiv 2411.19108), MagCache (2506.09045), EasyCache (2507.02860). What the first two look at is the same for every prompt or averaged over
those for calibration, so their steps are a schedule; EasyCache decides in each run, and prompts of a batch decide for themselves.
"""

from __future__ import annotations

import math

import numpy
import torch


class Rule:
    """What a run is made with. `skips`: the steps that no prompt computes, where that is known before."""

    name, skips = "", ()
    steps = None  # of the run; None: as many as the dense one has

    def begin(self, model):
        """Before a run."""

    def predict(self, model, latents, step):
        """→ (conditional, unconditional), float32 like latents."""
        return model.branches(latents, step)


class Scheduled(Rule):
    """Changes add up since the last step that ran; below the knob a step is skipped. The first steps and the last one run."""

    first_steps, most_in_a_row = 1, 99

    def predict(self, model, latents, step):
        return model.branches(latents, step, reuse=self.skips[step])

    def schedule(self, threshold, changes):
        skips, total, in_a_row = [], 0.0, 0
        for step, change in enumerate(changes):
            total = self.added(total, change, in_a_row)
            skip = bool(self.first_steps <= step < len(changes) - 1 and total < threshold and in_a_row < self.most_in_a_row)
            in_a_row = in_a_row + 1 if skip else 0
            if not skip:
                total = 0.0
            skips.append(skip)
        return skips

    def tune(self, model, steps, prompts):
        """The knob whose number of steps that run is nearest to the wanted one, the larger number of two that are. Where a rule's own limit of steps in
        a row leaves too many, it is lifted.
        """
        found = {}
        for threshold in numpy.geomspace(1e-5, 30, 4000):
            skips = self.schedule(threshold, self.changes)
            found.setdefault(len(skips) - sum(skips), (float(threshold), skips))
        if min(found) > math.ceil(steps) and self.most_in_a_row < len(self.changes):
            self.most_in_a_row += 1
            return self.tune(model, steps, prompts)
        self.knob, self.skips = found[min(found, key=lambda count: (abs(count - steps), -count))]


class TeaCache(Scheduled):
    """Relative change of the time embedding, by a polynomial of degree 4 that says what the output's change then is."""

    name = "TeaCache"

    def added(self, total, change, _):
        return total + change

    def measure(self, notes):
        inputs = relative_changes(notes["embeddings"])[:, 0].tolist()  # of the time alone: all prompts' are the same
        outputs = relative_changes(notes["outputs"]).mean(1).tolist()
        scale = max(inputs)
        fit = numpy.polyfit(numpy.array(inputs) / scale, outputs, 4)
        self.changes = [0.0] + [abs(float(numpy.polyval(fit, x / scale))) for x in inputs]


class MagCache(Scheduled):
    """How much the residual's magnitude changes from step to step, averaged over the prompts; the product since the last that ran."""

    name, most_in_a_row = "MagCache", 4

    def added(self, total, ratio, in_a_row):
        product, error = (1.0, 0.0) if in_a_row == 0 else self._state
        product *= ratio
        error += abs(1 - product)
        self._state = (product, error)
        return error

    def measure(self, notes):
        magnitudes = notes["magnitudes"]
        self.first_steps = round(0.2 * len(magnitudes))
        self.changes = [1.0] + [float((now / before).mean()) for before, now in zip(magnitudes, magnitudes[1:])]


class EasyCache(Rule):
    """Online: the output is taken to change with the latents as it last did; the residual is that of the whole transformer."""

    name, first_steps = "EasyCache", 4

    def measure(self, notes):
        pass

    def begin(self, model):
        self.latents = None

    def predict(self, model, latents, step):
        if self.latents is None:
            self.rate = torch.full((len(latents),), torch.nan, device=latents.device)  # not known before two steps ran
            self.total = torch.zeros_like(self.rate)
            self.ran = self.ran_out = torch.full_like(latents, torch.nan)  # latents of the last step that ran, and what it gave
            self.residuals = [torch.zeros_like(latents)] * 2
        else:
            self.total = self.total + self.rate * size(latents - self.latents) / size(self.out)
        runs = ~(self.total < self.knob)
        if not self.first_steps <= step < model.steps - 1:
            runs = torch.ones_like(runs)
        outs = [latents + residual for residual in self.residuals]
        if runs.any():
            rows = runs.nonzero()[:, 0]
            for out, computed in zip(outs, model.branches(latents[rows], step, rows=rows)):
                out[rows] = computed
            where = runs.view(-1, *[1] * (latents.dim() - 1))
            self.rate = torch.where(runs, size(outs[0] - self.ran_out) / size(latents - self.ran), self.rate)
            self.total = torch.where(runs, 0.0, self.total)
            self.ran, self.ran_out = torch.where(where, latents, self.ran), torch.where(where, outs[0], self.ran_out)
            self.residuals = [torch.where(where, out - latents, residual) for out, residual in zip(outs, self.residuals)]
        self.latents, self.out = latents, outs[0]
        return outs

    def tune(self, model, steps, prompts):
        low, high = 0.01, 1.0
        for _ in range(8):
            self.knob = (low * high) ** 0.5
            ran = model.run(self, prompts)[1] / 2
            if abs(ran - steps) < 0.1:
                return
            low, high = (self.knob, high) if ran > steps else (low, self.knob)


class FewerSteps(Rule):
    """No cache: a run of so many steps."""

    name = "fewer steps"

    def measure(self, notes):
        pass

    def tune(self, model, steps, prompts):
        self.steps = self.knob = round(steps)


class Ours(Rule):
    """A plan of calibatt's, which says itself what steps are reused."""

    name, knob = "ours", None


RULES = {rule.name: rule for rule in (TeaCache, MagCache, EasyCache, FewerSteps)}


def size(x):
    """Of each prompt: [batch]."""
    return x.float().abs().flatten(1).mean(1)


def relative_changes(tensors):
    """[steps − 1, batch]"""
    return torch.stack([size(b - a) / size(a) for a, b in zip(tensors, tensors[1:])])
