"""Density against speed and fidelity: the paper's recipe and ours, and what each of our choices is worth.

    python3 tools/tradeoff.py [--calibatt build/cpu/calibatt] [--prompts 2] [--recipes paper,ours,...] [--densities 0.5,...]

Measures two profiles (raster and tile order; kept under --work, so that a second call only adds what is missing), compiles a plan
per recipe and density from them, makes the held-out prompts dense and with every plan, and writes

    OUTPUT.json   every run: density, seconds, PSNR, SSIM, flicker (and judged accuracy with --judge)
    OUTPUT.md     the table
    OUTPUT.png    the plot, where matplotlib is installed

Dense runs are interleaved with planned ones; a speedup is the ratio of a planned run to the dense run of the same prompt nearest
in time, so that a machine that slows down skews no figure.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys

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
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibatt", type=pathlib.Path, default=ROOT / "build/cpu/calibatt")
    parser.add_argument("--calibration-prompts", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=2, help="held-out prompts")
    parser.add_argument("--seed", type=int, default=1000, help="of the first held-out prompt; the i-th has seed + i")
    parser.add_argument("--steps", type=int, help="denoising steps [the model's default]")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--densities", default="0.5,0.35,0.25,0.18,0.12")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "out/tradeoff")
    parser.add_argument("-o", "--output", type=pathlib.Path, default=ROOT / "out/tradeoff")
    parser.add_argument("--judge", action="store_true", help="also judge every clip (needs tools/tiny_wan's requirements)")
    return parser.parse_args()


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(str(part) for part in command)}\n{result.stdout}{result.stderr}")
    return result.stdout


class Study:
    def __init__(self, args):
        self.args = args
        self.work = args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.held_out = (MODEL / "prompts/heldout.txt").read_text().splitlines()[: args.prompts]
        calibration = (MODEL / "prompts/calibration_prompts.txt").read_text().splitlines()[: args.calibration_prompts]
        self.calibration_prompts = self.work / "prompts.txt"
        self.calibration_prompts.write_text("\n".join(calibration) + "\n")
        self.size = ["--steps", args.steps] if args.steps else []

    def compile(self, recipe, density):
        order, flags = RECIPES[recipe]
        plan = self.work / f"{re.sub('[^a-z]+', '_', recipe)}_{density}.safetensors"
        report = plan.with_suffix(".json")
        run(self.args.calibatt, "calibrate", "-m", MODEL, "--prompts", self.calibration_prompts, "-o", plan, "--token-order", order,
            "--profile", self.work / f"profile_{order.replace(':', '_')}", "--density", density, *flags, "--report", report, *self.size)
        return plan, json.loads(report.read_text())

    def generate(self, prompt, name, plan=None):
        folder = self.work / name
        folder.mkdir(exist_ok=True)
        report = folder / f"{prompt:02d}.json"
        frames = folder / f"{prompt:02d}.png"
        run(self.args.calibatt, "generate", "-m", MODEL, "-p", self.held_out[prompt], "-s", self.args.seed + prompt, "-o", frames,
            "--report", report, *self.size, *(["--plan", plan] if plan else []))
        return frames, json.loads(report.read_text())

    def compare(self, dense, calibrated):
        text = run(self.args.calibatt, "compare", dense, calibrated)
        psnr, ssim, flicker = re.match(r"PSNR (\S+) dB\s+SSIM (\S+)\s+flicker difference (\S+)", text).groups()
        return {"psnr_db": float(psnr), "ssim": float(ssim), "flicker": float(flicker)}

    def accuracy(self, name):
        output = self.work / f"{name}_judged.json"
        run(sys.executable, "-m", "tools.tiny_wan.judge", "--videos", self.work / name, "--labels", MODEL / "prompts/heldout_prompts.json",
            "-o", output)
        return json.loads(output.read_text())["accuracy"]

    def measure(self):
        runs = []
        plans = {}
        for recipe in self.args.recipes.split(","):
            for density in (float(text) for text in self.args.densities.split(",")):
                plans[recipe, density] = self.compile(recipe, density)
                print(f"compiled {recipe} at {density}", file=sys.stderr)
        for prompt in range(len(self.held_out)):
            for index, ((recipe, density), (plan, calibration)) in enumerate(plans.items()):
                if index % 3 == 0:
                    dense_frames, dense = self.generate(prompt, "dense")
                frames, planned = self.generate(prompt, plan.stem, plan)
                runs.append({
                    "recipe": recipe, "target_density": density, "density": planned["density"], "prompt": prompt,
                    "speedup_transformer": dense["seconds"]["transformer"] / planned["seconds"]["transformer"],
                    "speedup_attention": dense["seconds"]["attention"] / planned["seconds"]["attention"],
                    "repetitive_heads": calibration["repetitive_heads"] / calibration["total_heads"],
                    **self.compare(dense_frames, frames),
                })
                print(f"prompt {prompt}, {recipe} at {density}: {runs[-1]['psnr_db']:.1f} dB", file=sys.stderr)
        accuracy = {}
        if self.args.judge:
            accuracy = {"dense": self.accuracy("dense")}
            accuracy |= {plan.stem: self.accuracy(plan.stem) for plan, _ in plans.values()}
        return {"runs": runs, "accuracy": accuracy, "prompts": self.held_out, "seed": self.args.seed}


def summarise(result):
    rows = {}
    for each in result["runs"]:
        rows.setdefault((each["recipe"], each["target_density"]), []).append(each)
    table = []
    for (recipe, target), group in rows.items():
        median = {key: statistics.median(each[key] for each in group)
                  for key in ("density", "speedup_transformer", "speedup_attention", "repetitive_heads", "psnr_db", "ssim", "flicker")}
        table.append({"recipe": recipe, "target_density": target, **median})
    return table


def write_table(table, path):
    lines = ["| recipe | density | transformer × | attention × | repetitive heads | PSNR dB | SSIM | flicker |", "|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['recipe']} | {row['density']:.3f} | {row['speedup_transformer']:.2f} | {row['speedup_attention']:.2f} | "
        f"{row['repetitive_heads']:.0%} | {row['psnr_db']:.1f} | {row['ssim']:.3f} | {row['flicker']:+.2f} |"
        for row in table
    ]
    path.write_text("\n".join(lines) + "\n")


def plot(table, path):
    try:
        import matplotlib
    except ImportError:
        print("no matplotlib: no plot", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.8), sharey=True)
    for recipe in dict.fromkeys(row["recipe"] for row in table):
        rows = sorted((row for row in table if row["recipe"] == recipe), key=lambda row: row["density"])
        for axis, key in zip(axes, ("density", "speedup_transformer")):
            axis.plot([row[key] for row in rows], [row["psnr_db"] for row in rows], "o-", label=recipe)
    axes[0].set_xlabel("density (computed query-key pairs)")
    axes[1].set_xlabel("speedup of the transformer over dense")
    axes[0].set_ylabel("PSNR against dense, dB (median)")
    axes[0].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    args = arguments()
    result = Study(args).measure()
    table = summarise(result)
    result["table"] = table
    args.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    write_table(table, args.output.with_suffix(".md"))
    plot(table, args.output.with_suffix(".png"))
    print(args.output.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
