#!/usr/bin/env python3
"""A guided step on four GPUs, and a whole video, out of steps that one and two GPUs took.

four_gpus.py STEPS.jsonl [LAYERS [STEPS [OTHER_SECONDS]]]
STEPS.jsonl: of alternate.py, its programs named GPUS.LAYERS: 1.8, 1.2, 2.8 and 2.2; requests with guidance 5 and 1. OTHER_SECONDS: of a video, beside its
steps: text, the first step's choice of algorithms, decoding.

A layer's attention is that of 8 layers over 8. All else of a step is taken to be a constant and a part for each layer, which 2 and 8 layers tell apart.
A guided step on four GPUs, two for each branch, is a forward that two share, and what guidance costs two GPUs with a branch each beside a forward alone.
"""

import json
import statistics
import sys


class Step:
    """Seconds of a step of so many layers."""

    def __init__(self, replies_2, replies_8):
        attention = {n: statistics.median(r["attention"] / len(r["steps"]) for r in replies)
                     for n, replies in ((2, replies_2), (8, replies_8))}
        whole = {n: statistics.median(s for r in replies for s in r["steps"][1:])
                 for n, replies in ((2, replies_2), (8, replies_8))}
        rest = {n: whole[n] - attention[n] for n in (2, 8)}
        other = (rest[8] - rest[2]) / 6
        self.constant, self.layer = rest[8] - 8 * other, other + attention[8] / 8

    def of(self, layers):
        return self.constant + layers * self.layer


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    path, layers = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 40
    steps, other = int(sys.argv[3]) if len(sys.argv) > 3 else 50, float(sys.argv[4]) if len(sys.argv) > 4 else 0
    replies = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            reply = json.loads(line)
            kind, guidance, _ = reply["request"].split()
            replies.setdefault((kind, guidance, *reply["program"].split(".")), []).append(reply)
    for kind in ("dense", "planned"):
        step = {(gpus, guidance): Step(replies[kind, guidance, gpus, "2"], replies[kind, guidance, gpus, "8"])
                for gpus in "12" for guidance in ("5", "1")}
        for (gpus, guidance), each in step.items():
            print(f"{kind}, {gpus} GPU(s), guidance {guidance}: {1e3 * each.constant:.1f} ms and {1e3 * each.layer:.2f} ms a layer")
        for count in (8, layers):
            one, two = step["1", "5"].of(count), step["2", "5"].of(count)
            four = two - step["1", "1"].of(count) + step["2", "1"].of(count)
            print(f"{kind}, {count} layers, a guided step: {one:.3f} s on one GPU, {two:.3f} on two ({one / two:.3f} times as fast), "
                  f"{four:.3f} on four ({one / four:.3f})")
        print(f"{kind}: {steps} guided steps on four GPUs {steps * four:.1f} s, with {other:.1f} s beside them {steps * four + other:.1f} s")


if __name__ == "__main__":
    main()
