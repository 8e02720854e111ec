"""Density against speed and fidelity: the paper's recipe and ours, and what each of our choices is worth.

    python3 -m tools.tradeoff [--prompts 8] [--recipes paper,ours,...] [--densities 0.5,...]     # all of it
    python3 -m tools.tradeoff --only plans                     # stops when the plans are there (they can be taken elsewhere)
    python3 -m tools.tradeoff --jobs 4 --threads 4 --seconds 500       # four prompts at a time, starts nothing new after 500 s
    python3 -m tools.tradeoff --prompts 0 --judged-prompts 64          # only dense and the default plan, for the judge
    python3 -m tools.tradeoff --model out/tiny-wan-4step --prompts 64 --recipes ours --densities 0.35  # tools.tiny_video.merged

Measures a profile per token order and kind of measurement, compiles a plan per recipe and density from them, makes held-out prompts dense and with every
plan, and judges every clip (tools/tiny_video/judge). Everything is kept under --work: the same command again only adds what is
missing. Writes there

    results/PROMPT/PLAN.json   one run: its report, PSNR, SSIM and flicker against dense, the judge's verdict
    tradeoff.json, .md, .png   all runs; the table; the plot

A speedup is the ratio of a planned run to the mean of the dense runs of the same prompt before and after its group. Nothing else may
run on the machine while speedups count.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

from tools.plotting import pyplot_to_files
from tools.tiny_video.judge import ASPECTS, judge, read_video

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = ROOT / "models/tiny-wan"

TILES = "tiles:16x2x2"
PAPER = ["--budget", "energy", "--agreement", "vote", "--skipped", "drop"]
OURS = ["--budget", "error"]
RECIPES = {  # name: (token order, flags of `calibatt calibrate`)
    "paper": ("raster", [*PAPER, "--repetition", "off"]),
    "paper + repetition": ("raster", [*PAPER, "--repetition", "similarity"]),
    "ours": (TILES, [*OURS, "--skipped", "summary", "--repetition", "error"]),
    "ours, no repetition": (TILES, [*OURS, "--skipped", "summary", "--repetition", "off"]),
    "ours, raster": ("raster", [*OURS, "--skipped", "summary", "--repetition", "error"]),
    "ours, dropped": (TILES, [*OURS, "--skipped", "drop", "--repetition", "error"]),
    "ours, level codes": (TILES, ["--measure", "levels", *OURS, "--skipped", "summary"]),  # what large models get
    "paper, few steps": ("raster", [*PAPER, "--repetition", "off", "--schedule-a", "0.763", "--schedule-c", "0.863", "--schedule-k", "5.64"]),
    "energy, level codes": (TILES, ["--measure", "levels", "--budget", "energy", "--skipped", "summary"]),
}
DEFAULT = ("ours", 0.3)  # what calibatt calibrate does without flags
GROUP = 16  # planned runs between two dense ones


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibatt", type=pathlib.Path, default=ROOT / "build/cpu/calibatt")
    parser.add_argument("--model", type=pathlib.Path, default=MODEL, help="folder of the model, of tiny-wan's kind")
    parser.add_argument("--calibration-prompts", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=2, help="held-out prompts that every plan makes")
    parser.add_argument("--judged-prompts", type=int, default=0, help="held-out prompts that dense and the default plan make")
    parser.add_argument("--seed", type=int, default=1000, help="of the first held-out prompt; the i-th has seed + i")
    parser.add_argument("--steps", type=int, help="denoising steps [the model's default]")
    parser.add_argument("--recipes", default=";".join(RECIPES), help="names with ; between them")
    parser.add_argument("--densities", default="0.5,0.35,0.25,0.18,0.12")
    parser.add_argument("--only", choices=("plans", "runs", "summary"), help="one part")
    parser.add_argument("--jobs", type=int, default=1, help="prompts at a time")
    parser.add_argument("--threads", type=int, default=0, help="of each job; 0: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="starts no run later than that")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "out/tradeoff")
    return parser.parse_args()


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(str(part) for part in command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def plan_name(recipe, density):
    return f"{re.sub('[^a-z]+', '_', recipe)}_{density:g}"


class Plans:
    """Compiles what is missing under work/plans; one profile per token order and kind of measurement."""

    def __init__(self, args):
        self.args = args
        (args.work / "plans").mkdir(parents=True, exist_ok=True)
        calibration = (MODEL / "prompts/calibration_prompts.txt").read_text().splitlines()[: args.calibration_prompts]
        self.prompts = args.work / "prompts.txt"
        self.prompts.write_text("\n".join(calibration) + "\n")

    def make(self, recipe, density):
        plan = self.args.work / "plans" / f"{plan_name(recipe, density)}.safetensors"
        if plan.exists():
            return
        order, flags = RECIPES[recipe]
        size = ["--steps", self.args.steps] if self.args.steps else []
        profile = f"profile_{order.replace(':', '_')}" + ("_levels" if "levels" in flags else "")
        run(self.args.calibatt, "calibrate", "-m", self.args.model, "--prompts", self.prompts, "-o", plan, "--token-order", order, "--profile",
            self.args.work / profile, "--density", density, *flags, "--report", plan.with_suffix(".json"), *size)
        print(f"compiled {recipe} at {density:g}", file=sys.stderr)


class Prompt:
    """The runs of one held-out prompt. Frames live only until the prompt is done."""

    def __init__(self, args, index, plans):
        self.args, self.index, self.plans = args, index, plans
        self.text = (MODEL / "prompts/heldout.txt").read_text().splitlines()[index]
        self.labels = json.loads((MODEL / "prompts/heldout_prompts.json").read_text())[index]
        self.frames = args.work / "frames" / f"{index:02d}"
        self.results = args.work / "results" / f"{index:02d}"

    def generate(self, name, plan=None):
        folder = self.frames / name
        folder.mkdir(parents=True, exist_ok=True)
        report = self.frames / f"{name}.json"
        size = ["--steps", self.args.steps] if self.args.steps else []
        run(self.args.calibatt, "generate", "-m", self.args.model, "-p", self.text, "-s", self.args.seed + self.index, "-o", folder / "f.png",
            "--report", report, "-t", self.args.threads, *size, *(["--plan", plan] if plan else []))
        return folder, json.loads(report.read_text())

    def write(self, name, report, folder, against_dense):
        verdict = judge(read_video(folder), self.labels)
        result = {"prompt": self.index, "seed": self.args.seed + self.index, "seconds": report["seconds"], "density": report.get("density", 1.0),
                  **against_dense, "verdict": {aspect: bool(verdict[aspect]) for aspect in ASPECTS}}  # fmt: skip
        self.results.mkdir(parents=True, exist_ok=True)
        temporary = self.results / f"{name}.part"
        temporary.write_text(json.dumps(result) + "\n")
        temporary.replace(self.results / f"{name}.json")

    def measure(self, deadline):
        missing = [name for name in self.plans if not (self.results / f"{name}.json").exists()]
        if not missing or time.time() > deadline:
            return
        dense_folder, before = self.generate("dense")
        if not (self.results / "dense.json").exists():
            self.write("dense", before, dense_folder, {})
        for first in range(0, len(missing), GROUP):
            group = []
            for name in missing[first : first + GROUP]:
                if time.time() > deadline:
                    break
                folder, report = self.generate(name, self.args.work / "plans" / f"{name}.safetensors")
                text = run(self.args.calibatt, "compare", dense_folder / "f.png", folder / "f.png")
                psnr, ssim, flicker = re.match(r"PSNR (\S+) dB\s+SSIM (\S+)\s+flicker difference (\S+)", text).groups()
                group.append((name, report, folder, {"psnr_db": float(psnr), "ssim": float(ssim), "flicker": float(flicker)}))
                print(f"prompt {self.index}, {name}: {psnr} dB", file=sys.stderr, flush=True)
            after = self.generate("dense")[1] if len(group) > 1 and time.time() < deadline else before
            for name, report, folder, figures in group:
                for part in ("transformer", "attention"):
                    mean = (before["seconds"][part] + after["seconds"][part]) / 2
                    figures[f"speedup_{part}"] = mean / report["seconds"][part]
                self.write(name, report, folder, figures)
                shutil.rmtree(folder)
            before = after
        shutil.rmtree(self.frames, ignore_errors=True)


def collect(work, chosen):
    runs = []
    for path in sorted((work / "results").glob("*/*.json")):
        runs.append({"plan": path.stem, **json.loads(path.read_text())})
    table = []
    for recipe, density in chosen:
        name = plan_name(recipe, density)
        group = [each for each in runs if each["plan"] == name]
        if not group:
            continue
        prompts = {each["prompt"] for each in group}
        dense = [each for each in runs if each["plan"] == "dense" and each["prompt"] in prompts]
        calibration = json.loads((work / "plans" / f"{name}.json").read_text())
        row = {"recipe": recipe, "target_density": density, "prompts": len(group),
               "repetitive_heads": calibration["repetitive_heads"] / calibration["total_heads"]}  # fmt: skip
        for key in ("density", "speedup_transformer", "speedup_attention", "psnr_db", "ssim", "flicker"):
            row[key] = statistics.median(each[key] for each in group)
        row["psnr_db_worst"] = min(each["psnr_db"] for each in group)
        row["accuracy"], row["accuracy_dense"] = (
            {a: 100 * statistics.mean(each["verdict"][a] for each in some) for a in ASPECTS} for some in (group, dense)
        )
        table.append(row)
    return {"runs": runs, "table": table}


def write_table(table, path):
    lines = ["| recipe | density | prompts | transformer × | attention × | repetitive heads | PSNR dB (worst) | SSIM | flicker | colour / shape / motion (dense) |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in table:
        accuracy = " / ".join(f"{row['accuracy'][a]:.1f} ({row['accuracy_dense'][a]:.1f})" for a in ("colour", "shape", "motion"))
        lines.append(
            f"| {row['recipe']} | {row['density']:.3f} | {row['prompts']} | {row['speedup_transformer']:.2f} | {row['speedup_attention']:.2f} | "
            f"{row['repetitive_heads']:.0%} | {row['psnr_db']:.1f} ({row['psnr_db_worst']:.1f}) | {row['ssim']:.3f} | {row['flicker']:+.2f} | {accuracy} |"
        )
    path.write_text("\n".join(lines) + "\n")


def plot(table, path):
    pyplot = pyplot_to_files()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.8))
    for recipe in dict.fromkeys(row["recipe"] for row in table):
        rows = sorted((row for row in table if row["recipe"] == recipe), key=lambda row: row["density"])
        for axis, key in zip(axes, ("psnr_db", "flicker")):
            axis.plot([row["density"] for row in rows], [row[key] for row in rows], "o-", label=recipe)
    axes[0].set_ylabel("PSNR against dense, dB (median)")
    axes[1].set_ylabel("flicker beyond dense's, grey levels (median)")
    axes[0].legend()
    for axis in axes:
        axis.set_xlabel("density (computed query-key pairs)")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    args = arguments()
    deadline = time.time() + args.seconds
    recipes = args.recipes.split(";")
    unknown = [name for name in recipes if name not in RECIPES]
    if unknown:
        sys.exit(f"unknown recipe {unknown[0]!r}; there are: {'; '.join(RECIPES)}")
    chosen = [(recipe, float(text)) for recipe in recipes for text in args.densities.split(",")] if args.prompts else []
    if args.judged_prompts and DEFAULT not in chosen:
        chosen.append(DEFAULT)
    if args.only in (None, "plans"):
        plans = Plans(args)
        for recipe, density in chosen:
            plans.make(recipe, density)
    if args.only in (None, "runs"):
        names = [plan_name(*each) for each in chosen]
        work = [Prompt(args, index, names if index < args.prompts else [plan_name(*DEFAULT)])
                for index in range(max(args.prompts, args.judged_prompts))]  # fmt: skip
        os.environ.setdefault("OMP_NUM_THREADS", str(args.threads or os.cpu_count()))
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            futures = [pool.submit(each.measure, deadline) for each in work]
            for future in concurrent.futures.as_completed(futures):
                if future.exception() is not None:
                    pool.shutdown(cancel_futures=True)
                    sys.exit(str(future.exception()))
    if args.only in (None, "summary"):
        every = [(recipe, float(density)) for recipe in RECIPES for density in sorted({*args.densities.split(","), str(DEFAULT[1])}, reverse=True)]
        result = {"model": args.model.name, "seed": args.seed, "prompts": (MODEL / "prompts/heldout.txt").read_text().splitlines(), **collect(args.work, every)}
        (args.work / "tradeoff.json").write_text(json.dumps(result, indent=1) + "\n")
        write_table(result["table"], args.work / "tradeoff.md")
        plot([row for row in result["table"] if row["prompts"] >= 2 and (row["recipe"], row["target_density"]) != DEFAULT],
             args.work / "tradeoff.png")  # fmt: skip
        print((args.work / "tradeoff.md").read_text())


if __name__ == "__main__":
    main()
