#!/usr/bin/env python3
"""What each kernel of a forward takes, dense and planned, in the forward itself: calibatt_forward_bench with CUPTI's records.

Of each mode some runs, of which the last counts: the first chooses algorithms. A forward is what lies from patchify to unpatchify. Prints one table
per mode and forward (of Mochi two: with a prompt of 60 tokens, and without), milliseconds per layer; the output has every launch of the same kernel
and size together: how many, their sum, the least and the most. CUPTI's records cost the device next to nothing, and the host some microseconds each.

Usage: kernel_times.py --server PATH/calibatt_forward_bench --library PATH/libcalibatt_kernel_times.so --model mochi --layers 4 --output times.json
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

MODES = ("dense", "planned")


def run(arguments, record):
    """How many runs there were of each mode, in the order of MODES."""
    environment = {**os.environ, "CUDA_INJECTION64_PATH": str(Path(arguments.library).resolve()), "CALIBATT_KERNEL_TIMES": record}
    command = [arguments.server, "--model", arguments.model, "--layers", str(arguments.layers), "--serve", *arguments.server_args.split()]
    commands = "".join(f"run {mode}\n" for mode in MODES for _ in range(arguments.runs))
    done = subprocess.run(command, input=commands, capture_output=True, text=True, env=environment, timeout=arguments.seconds)
    replies = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(replies) != 1 + arguments.runs * len(MODES):
        raise SystemExit(f"the server ended with {done.returncode}: {(done.stderr or done.stdout)[-400:]}")
    for reply in replies:
        if "error" in reply:
            raise SystemExit(f"the server: {reply['error']}")
    return replies


def forwards_of(record):
    """Lists of (start, duration, blocks, threads, registers, name), by time, one for each forward."""
    launches = []
    for line in Path(record).read_text().splitlines():
        *numbers, name = line.split(" ", 5)
        launches.append((*map(int, numbers), name))
    launches.sort()
    forwards, inside = [], False
    for launch in launches:
        if "patchify_kernel" in launch[5] and "unpatchify_kernel" not in launch[5]:
            forwards.append([])
            inside = True
        if inside:
            forwards[-1].append(launch)
        if "unpatchify_kernel" in launch[5]:
            inside = False
    return forwards


def short(name):
    name = re.sub(r"\((anonymous namespace|unnamed)\)::|calibatt::cuda::|^void ", "", name)
    name = re.sub(r"\(.*$", "", name)
    return name if len(name) <= 72 else name[:46] + "…" + name[-25:]


def summary(forward, layers):
    groups = defaultdict(list)
    for _, duration, blocks, threads, registers, name in forward:
        groups[name, blocks, threads, registers].append(duration / 1e6)
    rows = [
        {"kernel": name, "blocks": blocks, "threads": threads, "registers": registers, "launches": len(times), "ms": sum(times), "ms_least_most": [min(times), max(times)]}
        for (name, blocks, threads, registers), times in groups.items()
    ]
    rows.sort(key=lambda row: -row["ms"])
    span = (max(start + duration for start, duration, *_ in forward) - forward[0][0]) / 1e6
    return {"ms": span, "ms_in_kernels": sum(row["ms"] for row in rows), "layers": layers, "launches": len(forward), "kernels": rows}


def show(title, found, least):
    print(f"== {title}: {found['ms'] / found['layers']:.3f} ms a layer, {found['ms_in_kernels'] / found['layers']:.3f} in kernels, {found['launches']} launches")
    rest = 0
    for row in found["kernels"]:
        each = row["ms"] / found["layers"]
        if each < least:
            rest += each
            continue
        print(f"{each:8.3f} ms  {row['launches']:4d} × {row['ms'] / row['launches']:7.4f}  {row['blocks']:6d} blocks {row['registers']:3d} regs  {short(row['kernel'])}")
    print(f"{rest:8.3f} ms  smaller ones")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--library", required=True)
    parser.add_argument("--model", default="mochi")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3, help="of each mode")
    parser.add_argument("--server-args", default="")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--least", type=float, default=0.02, help="milliseconds a layer of a kernel that is printed")
    parser.add_argument("--commit", default="")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = os.path.join(folder, "kernels")
        replies = run(arguments, record)
        forwards = forwards_of(record)
    per_run = len(forwards) // (arguments.runs * len(MODES))
    if per_run == 0 or len(forwards) != per_run * arguments.runs * len(MODES):
        raise SystemExit(f"{len(forwards)} forwards were recorded of {arguments.runs} runs of each mode")
    result = {"server": replies[0], "commit": arguments.commit, "runs": replies[1:], "forwards": []}
    for index, mode in enumerate(MODES):
        last = ((index + 1) * arguments.runs - 1) * per_run
        for number in range(per_run):
            found = summary(forwards[last + number], arguments.layers)
            result["forwards"].append({"mode": mode, "number": number, **found})
            show(f"{mode}, forward {number + 1} of {per_run}", found, arguments.least)
    Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
