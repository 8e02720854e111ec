#!/usr/bin/env python3
"""Times the CUDA attention kernels beside torch's, on one GPU, in one run. Cases are data (cases.json).

Each kernel's results are checked first, in a process of its own, so that one that hangs or faults takes nothing with it. Then, shape by
shape and round by round, all competitors run in random order; each back to back for `--burst` seconds at least, of which the median of
the second half counts ("sustained": the card is warm and at its power limit). A figure is the median over rounds of a ratio within one
round. The output is written after every round; a run that is cut off leaves what it had.

Needs torch (CUDA) and numpy. Usage: attention.py --library PATH/libcalibatt.so --output result.json
"""

import argparse
import json
import math
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from calibatt_kernels import Library
from card import Readings
from check import check_case
from masks import blocks, kept_share, make_anchors, make_mask

HERE = Path(__file__).parent
DEVICE = "cuda"
CONTEXT_LOST = 3  # exit code of a checking child that reported its last case, and cannot go on


class Shape:
    """Inputs of one shape, and the competitors on them."""

    def __init__(self, name, spec, library, kernels):
        self.name, self.spec, self.lib, self.kernels = name, spec, library, kernels
        self.heads, self.tokens, self.head_dim = spec["heads"], spec["tokens"], spec["head_dim"]
        generator = torch.Generator(device=DEVICE).manual_seed(1)
        size, dtype = (1, self.tokens, self.heads, self.head_dim), getattr(torch, spec.get("dtype", "bfloat16"))
        self.q, self.k, self.v = (torch.randn(size, device=DEVICE, dtype=dtype, generator=generator) for _ in range(3))
        self.out = torch.empty_like(self.q)
        self.scale = self.head_dim**-0.5
        self._masks = {}

    def mask(self, case):
        key = (case["mask"], case["density"], case.get("block_k", 128))
        if key not in self._masks:
            self._masks[key] = make_mask(key[0], key[1], self.heads, self.tokens, self.spec["frame"], 128, key[2])
        return self._masks[key]

    def kernel_of(self, case):
        return case.get("kernel", self.kernels[0])

    def prepare(self, case):
        """What is computed (for the check), and how to run it: case → dict with `run`, `share` (kept pairs of all), and more."""
        block_k = case.get("block_k", 128)
        if "torch" in case:
            return {"run": self._torch_runner(case["torch"]), "share": 1.0}
        if case.get("flex"):
            from flex import flex_runner

            mask = self.mask(case)
            return {"run": flex_runner(self.q, self.k, self.v, mask, block_k), "share": kept_share(mask, self.tokens, 128, block_k)}
        prepared = {"share": 1.0, "block_k": block_k, "mask": None, "anchors": None, "energy": None, "schedule": None}
        if "mask" in case:
            prepared["mask"] = self.mask(case)
            prepared["share"] = kept_share(prepared["mask"], self.tokens, 128, block_k)
        if "anchor_rows" in case:
            prepared["anchors"] = make_anchors(self.tokens, self.spec["frame"], self.spec["rows"], case["anchor_rows"])
            prepared["share"] = case["anchor_rows"] / self.spec["rows"]
        if prepared["mask"] is not None or prepared["anchors"] is not None:
            prepared["schedule"] = self.lib.make_schedule(
                prepared["mask"], self.heads, self.tokens, self.tokens, 128, block_k, case.get("summarize", False), prepared["anchors"]
            )
        if case.get("energy"):
            size = (1, self.heads, blocks(self.tokens, 128), blocks(self.tokens, block_k))
            prepared["energy"] = torch.empty(size, device=DEVICE, dtype=torch.float32)
        call = self.lib.attention(
            self.q, self.k, self.v, self.out, scale=self.scale, block_k=block_k, schedule=prepared["schedule"],
            energy=prepared["energy"], kernel=self.kernel_of(case),
        )  # fmt: skip
        prepared["run"], prepared["call"] = call.run, call
        return prepared

    def _torch_runner(self, backend):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))

        def run():
            with sdpa_kernel(getattr(SDPBackend, backend)):
                torch.nn.functional.scaled_dot_product_attention(q, k, v)

        return run

    def flops(self, share):
        return 4.0 * self.heads * float(self.tokens) ** 2 * self.head_dim * share


def burst(run, seconds):
    """Median milliseconds, and median clock in MHz, of the second half of back-to-back launches that take this long."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    count = max(3, round(1e3 * seconds / max(start.elapsed_time(end), 1e-3)))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    with Readings() as readings:
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)]
    return statistics.median(times[count // 2 :]), readings.median_of_second_half("clocks.sm")


def wanted_cases(data, options):
    """[(shape name, case)] in the file's order, filtered."""
    result = []
    for shape in data["shapes"]:
        for case in data["cases"]:
            if shape not in case.get("shapes", list(data["shapes"])) or (case.get("flex") and not options.flex):
                continue
            if "kernel" in case and case["kernel"] not in options.kernels:
                continue
            if re.search(options.cases, f"{shape} {case['name']}"):
                result.append((shape, case))
    return result


def is_ours(case):
    return "torch" not in case and not case.get("flex")


def run_checks(data, options, deadline):
    """Checks every case of ours in child processes; returns {(shape, case name): result}. A child that dies or exceeds its time costs the
    case it was at; the next child continues behind it."""
    pending = [(shape, case["name"]) for shape, case in wanted_cases(data, options) if is_ours(case)]
    results = {}
    while pending and time.monotonic() < deadline:
        command = [sys.executable, __file__, *sys.argv[1:], "--check-only", json.dumps(pending)]
        seconds = min(options.check_timeout, deadline - time.monotonic())
        try:
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False)
            output, end = child.stdout, "" if child.returncode == CONTEXT_LOST else f"the process ended with {child.returncode}"
        except subprocess.TimeoutExpired as expired:
            output = expired.stdout or ""
            output, end = output if isinstance(output, str) else output.decode(), f"no result after {seconds:.0f} s"
        done = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        for result in done:
            results[result["shape"], result["case"]] = result
        pending = pending[len(done) :]
        if pending and end:
            shape, case = pending.pop(0)
            results[shape, case] = {"shape": shape, "case": case, "ok": False, "usable": False, "reason": end}
            print(f"check {shape} {case}: {end}", flush=True)
    for shape, case in pending:
        results[shape, case] = {"shape": shape, "case": case, "ok": False, "usable": False, "reason": "no time left to check it"}
    return results


def check_only(data, options):
    """The child: one JSON line per case, in the order asked for."""
    library, shape = Library(options.shared_object), None
    cases = {case["name"]: case for case in data["cases"]}
    for shape_name, case_name in json.loads(options.check_only):
        if shape is None or shape.name != shape_name:
            shape = None  # frees the last one's memory first
            shape = Shape(shape_name, data["shapes"][shape_name], library, options.kernels)
        result = {"shape": shape_name, "case": case_name}
        try:
            prepared = shape.prepare(cases[case_name])
            result |= {"kernel": prepared["call"].kernel_name, "workspace_mb": prepared["call"].workspace_bytes / 2**20}
            result |= check_case(shape, prepared, cases[case_name].get("summarize", False), cases[case_name].get("max_error"))
        except Exception as error:
            result |= {"ok": False, "usable": False, "reason": " ".join(str(error).split())[:500]}
        result = {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in result.items()}
        print(json.dumps(result), flush=True)
        summary = {key: value for key, value in result.items() if key not in ("shape", "case")}
        print(f"check {shape_name} {case_name}: {summary}", file=sys.stderr, flush=True)
        if "CUDA" in result.get("reason", "") or "GPU" in result.get("reason", ""):
            sys.exit(CONTEXT_LOST)  # perhaps; the parent goes on behind this case


def time_shape(shape, cases, checks, options, deadline, save):
    """Rounds until the deadline. Returns {case name: {"ms": [...one per round, or None], "share": …}} and what was left out."""
    times, left_out, runs = {}, {}, {}
    for case in cases:
        name = case["name"]
        check = checks.get((shape.name, name))
        if is_ours(case) and not (check and check.get("usable")):
            left_out[name] = (check or {}).get("reason", "not checked")
            continue
        try:
            prepared = shape.prepare(case)
            prepared["run"]()
            torch.cuda.synchronize()
            runs[name] = prepared
            times[name] = {"ms": [], "clock_mhz": [], "share": prepared["share"], "kernel": getattr(prepared.get("call"), "kernel_name", "torch")}
        except Exception as error:
            left_out[name] = " ".join(str(error).split())[:500]
    order = random.Random(shape.name)
    rounds = 0
    while runs and rounds < options.rounds and (rounds == 0 or time.monotonic() < deadline):
        names = list(runs)
        order.shuffle(names)
        measured = {}
        for name in names:
            if rounds > 0 and time.monotonic() > deadline:
                break
            try:
                measured[name] = burst(runs[name]["run"], options.burst)
            except Exception as error:
                left_out[name] = " ".join(str(error).split())[:500]
                del runs[name]
        for name in times:
            milliseconds, clock = measured.get(name, (None, None))
            times[name]["ms"].append(milliseconds)
            times[name]["clock_mhz"].append(clock)
        rounds += 1
        save(shape, times, left_out)
        line = ", ".join(f"{name} {ms:.2f}" for name, (ms, _) in sorted(measured.items()))
        print(f"{shape.name} round {rounds}: {line}", flush=True)
    return times, left_out


def quartiles(values):
    ordered = sorted(values)
    at = [q * (len(ordered) - 1) for q in (0.25, 0.5, 0.75)]
    return [ordered[int(x)] + (x - int(x)) * (ordered[min(int(x) + 1, len(ordered) - 1)] - ordered[int(x)]) for x in at]


def cycles(entry):
    """Times at a clock of 1 MHz: what is left of a difference when the card's clock is taken out of it. None where it was not read."""
    return [ms * clock if ms and clock else None for ms, clock in zip(entry["ms"], entry["clock_mhz"], strict=True)]


def make_figures(data, all_times):
    """The list of {name, value, unit, target, ok}: medians over rounds of ratios within a round."""
    result = []
    for figure in data["figures"]:
        for shape, target in figure["shapes"].items():
            of, over = (all_times.get(shape, {}).get(figure[key]) for key in ("of", "over"))
            if of is None or over is None:
                continue
            in_cycles = figure["kind"].endswith("in cycles")
            pairs = [(a, b) for a, b in zip(*(cycles(entry) if in_cycles else entry["ms"] for entry in (of, over)), strict=False) if a and b]
            if not pairs:
                continue
            ratio = {
                "speedup": lambda a, b: b / a,
                "overhead": lambda a, b: a / b,
                "efficiency": lambda a, b, share=of["share"]: b * share / a,
                "overhead of share": lambda a, b, share=of["share"]: a / (b * share),
            }[figure["kind"].removesuffix(" in cycles")]
            low, value, high = quartiles([ratio(a, b) for a, b in pairs])
            lower_is_better = figure["kind"].startswith("overhead")
            ok = None if target is None else (value <= target if lower_is_better else value >= target)
            result.append({
                "name": f"{figure['name']}, {shape} tokens", "value": round(value, 4), "unit": "ratio", "target": target, "ok": ok,
                "better": "lower" if lower_is_better else "higher", "quartiles": [round(low, 4), round(high, 4)], "rounds": len(pairs),
            })  # fmt: skip
    return result


def describe_machine():
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        driver, power, clock = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        driver = power = clock = "unknown"
    return {
        "gpu": properties.name, "multiprocessors": properties.multi_processor_count, "memory_gb": round(properties.total_memory / 1e9, 1),
        "driver": driver, "power_limit": power, "max_clock": clock, "torch": torch.__version__, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "python": platform.python_version(),
    }  # fmt: skip


def commit_of_checkout():
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", dest="shared_object", metavar="FILE.so", required=True, help="libcalibatt.so")
    parser.add_argument("--data", default=str(HERE / "cases.json"), help="shapes, cases and figures")
    parser.add_argument("--output", default="attention.json")
    parser.add_argument("--cases", default="", help="regular expression on 'SHAPE CASE', as '75600 dense'")
    parser.add_argument("--kernels", default="sm90,sm80,sm90_fp8,sm90_fp8_wide", help="the first runs the cases that name none; cases of others are left out")
    parser.add_argument("--seconds", type=float, default=180, help="for everything, checks included")
    parser.add_argument("--burst", type=float, default=0.4, help="seconds a competitor runs back to back")
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument("--check-timeout", type=float, default=60, help="seconds for the checks of one child process")
    parser.add_argument("--flex", action="store_true", help="also FlexAttention, which compiles first")
    parser.add_argument("--commit", default="", help="of the library, where there is no git")
    parser.add_argument("--check-only", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.kernels = options.kernels.split(",")
    return options


def main():
    options = parse_options()
    data = json.loads(Path(options.data).read_text())
    if options.check_only:
        return check_only(data, options)
    begin = time.monotonic()
    # Half of the time at most goes into checks; what they do not need is for timing.
    checks = run_checks(data, options, begin + options.seconds / 2)
    report = {
        "machine": describe_machine(), "command": " ".join(sys.argv), "commit": options.commit or commit_of_checkout(),
        "date": time.strftime("%Y-%m-%d"), "mode": f"sustained, bursts of {options.burst} s", "figures": [],
        "checks": list(checks.values()), "times": {}, "left_out": {}, "clocks": {},
    }  # fmt: skip

    def save(shape, times, left_out):
        report["times"][shape.name] = {
            name: {**entry, "median_ms": quartiles(known)[1], "tflops": shape.flops(entry["share"]) / quartiles(known)[1] / 1e9}
            for name, entry in times.items()
            if (known := [ms for ms in entry["ms"] if ms])
        }
        report["left_out"][shape.name] = left_out
        report["figures"] = make_figures(data, report["times"])
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output).write_text(json.dumps(report, indent=1) + "\n")

    cases = wanted_cases(data, options)
    weights = {}  # a shape's share of the time: what one round of its cases takes, about
    for shape_name, case in cases:
        work = data["shapes"][shape_name]["heads"] * data["shapes"][shape_name]["tokens"] ** 2 * 512 / 5e14
        weights[shape_name] = weights.get(shape_name, 0) + max(options.burst, 3 * work * case.get("density", 1))
    library = Library(options.shared_object)
    for index, shape_name in enumerate(weights):
        left = begin + options.seconds - time.monotonic()
        seconds = left * weights[shape_name] / sum(list(weights.values())[index:])
        deadline = time.monotonic() + seconds
        shape = Shape(shape_name, data["shapes"][shape_name], library, options.kernels)
        with Readings(0.2) as readings:
            times, left_out = time_shape(shape, [c for s, c in cases if s == shape_name], checks, options, deadline, save)
        report["clocks"][shape_name] = readings.summary()
        save(shape, times, left_out)
        del shape, times
        torch.cuda.empty_cache()
    for shape_name, entries in report["times"].items():
        for name, entry in entries.items():
            speed = f"{entry['median_ms']:9.3f} ms {entry['tflops']:7.1f} TFLOP/s"
            print(f"{shape_name:>6} {name:<18} {entry['kernel']:<8} {speed} of {entry['share']:.4f}")
        for name, reason in report["left_out"][shape_name].items():
            print(f"{shape_name:>6} {name:<18} left out: {reason}")
    for figure in report["figures"]:
        verdict = "" if figure["ok"] is None else ("ok" if figure["ok"] else "MISSED")
        print(f"{figure['name']:<56} {figure['value']:7.3f} {figure['quartiles']} target {figure['target']} {verdict}")


if __name__ == "__main__":
    main()
