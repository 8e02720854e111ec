"""Cost of the transformer against fidelity: masks, steps that run no forward, both, and really fewer steps.

    python3 -m tools.reuse_tradeoff [--prompts 64] [--speedups 1.5,2,3,4] [--jobs 4]       # all of it
    python3 -m tools.reuse_tradeoff --only plans       # calibrates and compiles; the plans may run elsewhere
    python3 -m tools.reuse_tradeoff --only runs        # every plan in --work/plans, also others that were put there
    python3 -m tools.reuse_tradeoff --only videos --judged dense,both_2    # videos for the judge, into --work/videos
    python3 -m tools.reuse_tradeoff --only summary --peers steps.json      # table and plot, with peers' (python -m tools.peers.steps)

Every plan makes held-out prompts, and each video is compared with the dense one of its seed. The cost is that of forwards and density at the
attention's share of the transformer (--share); the transformer's seconds are written too. Everything is kept under --work: runs that are there
are not repeated. Writes reuse.json, reuse.md and reuse.png.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

from tools.plotting import pyplot_to_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
SKIPPING_EFFICIENCY, SUMMARY_PAIRS = 0.93, 1 / 64  # as calibrate takes them, for blocks of 64
NAMES = {"both": "ours: reuse and masks", "reuse": "ours: reuse alone", "masks": "ours: masks alone", "fewer": "fewer steps"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibatt", type=pathlib.Path, default=ROOT / "build/cpu/calibatt")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/tiny-wan")
    parser.add_argument("--speedups", default="1.5,2,3,4")
    parser.add_argument("--calibration-prompts", type=int, default=4)
    parser.add_argument("--profile", type=pathlib.Path, help="measurements that are there already [--work/profile]")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--other-prompts", type=int, default=0, help="of plans with other names than this tool gives [--prompts]")
    parser.add_argument("--seed", type=int, default=1, help="of the first held-out prompt; the i-th has seed + i")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.82, help="attention's share of a dense forward")
    parser.add_argument("--generate", default="", help="more flags of `calibatt generate`, such as '--dtype fp16'")
    parser.add_argument("--only", choices=("plans", "runs", "videos", "summary"))
    parser.add_argument("--judged", default="dense", help="plans whose videos are made for the judge")
    parser.add_argument("--peers", type=pathlib.Path, nargs="*", default=[], help="steps.json of tools.peers.steps")
    parser.add_argument("--jobs", type=int, default=1, help="plans at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="starts nothing new after that")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "out/reuse_tradeoff")
    return parser.parse_args()


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(str(part) for part in command)}\n{result.stdout}{result.stderr}"[-2000:])
    return result.stdout


def forward_cost(density, share):
    return 1 - share + share * (min(1.0, density / SKIPPING_EFFICIENCY + SUMMARY_PAIRS) if density < 1 else 1.0)


def density_at(cost, share):
    return ((cost - 1 + share) / share - SUMMARY_PAIRS) * SKIPPING_EFFICIENCY


def make_plans(args):
    plans = args.work / "plans"
    plans.mkdir(parents=True, exist_ok=True)
    prompts = args.work / "calibration_prompts.txt"
    lines = (args.model / "prompts/calibration_prompts.txt").read_text().splitlines()[: args.calibration_prompts]
    prompts.write_text("\n".join(lines) + "\n")
    for text in args.speedups.split(","):
        speedup = float(text)
        wanted = {f"both_{speedup:g}": ["--speedup", speedup], f"reuse_{speedup:g}": ["--speedup", speedup, "--density", 1]}
        if (density := density_at(1 / speedup, args.share)) > 0.05:
            wanted[f"masks_{speedup:g}"] = ["--density", f"{density:.3f}"]
        for name, flags in wanted.items():
            path = plans / f"{name}.safetensors"
            if not path.exists():
                run(args.calibatt, "calibrate", "-m", args.model, "--prompts", prompts, "--profile", args.profile or args.work / "profile", "-o", path,
                    "--report", path.with_suffix(".json"), "--steps", args.steps, *flags)  # fmt: skip
                print(f"compiled {name}", file=sys.stderr)


class Runs:
    """Held-out prompts by one plan at a time, each against the dense video of its seed."""

    def __init__(self, args):
        self.args, self.deadline = args, time.time() + args.seconds
        self.frames = args.work / "frames"
        self.texts = (args.model / "prompts/heldout.txt").read_text().splitlines()
        (args.work / "results").mkdir(parents=True, exist_ok=True)

    def flags(self, name):
        if name.startswith("fewer_"):
            return ["--steps", round(self.args.steps / float(name.split("_")[1]))]
        plan = [] if name == "dense" else ["--plan", self.args.work / "plans" / f"{name}.safetensors"]
        return ["--steps", self.args.steps, *plan]

    def generate(self, name, first, last, folder, ending):
        folder.mkdir(parents=True, exist_ok=True)
        prompts = folder / "prompts.txt"
        prompts.write_text("\n".join(self.texts[first:last]) + "\n")
        run(self.args.calibatt, "generate", "-m", self.args.model, "--prompts", prompts, "--seed", self.args.seed + first, "-o", folder / f"v{ending}",
            *self.flags(name), *self.args.generate.split())  # fmt: skip
        return [json.loads((folder / f"v_{i:04d}.json").read_text()) for i in range(last - first)]

    def dense(self):
        """All jobs share its prompts: everything else waits for them."""
        size = -(-self.args.prompts // self.args.jobs)
        starts = range(0, self.args.prompts, size)
        folders = [self.frames / "dense" / str(start) for start in starts]
        self.dense_video = lambda i: self.frames / "dense" / str(i // size * size) / f"v_{i % size:04d}.png"
        path = self.args.work / "results/dense.json"
        if path.exists() and all(folder.exists() for folder in folders):
            return
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            parts = pool.map(lambda start, folder: self.generate("dense", start, min(start + size, self.args.prompts), folder, ".png"), starts, folders)
            self.write("dense", [report for part in parts for report in part], {})

    def write(self, name, reports, figures):
        result = {"plan": name, "prompts": len(reports), "forwards": reports[0]["forwards"], "density": reports[0]["density"],
                  "precision": reports[0]["precision"], "device": reports[0]["device"], "step_reuse": reports[0]["step_reuse"],
                  "transformer_seconds": [report["seconds"]["transformer"] for report in reports], **figures}  # fmt: skip
        (self.args.work / "results" / f"{name}.json").write_text(json.dumps(result) + "\n")

    def compare(self, folder, i):
        text = run(self.args.calibatt, "compare", self.dense_video(i), folder / f"v_{i:04d}.png")
        return [float(x) for x in re.match(r"PSNR (\S+) dB\s+SSIM (\S+)\s+flicker difference (\S+)", text).groups()]

    def count(self, name):
        ours = name.split("_")[0] in NAMES and name.count("_") == 1
        return self.args.prompts if ours else self.args.other_prompts or self.args.prompts

    def measure(self, name):
        count = self.count(name)
        if (self.args.work / "results" / f"{name}.json").exists() or time.time() > self.deadline:
            return
        folder = self.frames / name
        reports = self.generate(name, 0, count, folder, ".png")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            figures = dict(zip(("psnr_db", "ssim", "flicker"), zip(*pool.map(lambda i: self.compare(folder, i), range(count)))))
        shutil.rmtree(folder)
        self.write(name, reports, figures)
        print(f"{name}: {statistics.median(figures['psnr_db']):.1f} dB, worst {min(figures['psnr_db']):.1f}", file=sys.stderr, flush=True)

    def all(self):
        self.dense()
        plans = sorted(path.stem for path in (self.args.work / "plans").glob("*.safetensors"))
        plans.sort(key=lambda name: name.split("_")[0] not in NAMES)
        fewer = [f"fewer_{float(text):g}" for text in self.args.speedups.split(",")]
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            for done in concurrent.futures.as_completed([pool.submit(self.measure, name) for name in [*fewer, *plans]]):
                if done.exception() is not None:
                    print(done.exception(), file=sys.stderr, flush=True)

    def videos(self):
        for name in self.args.judged.split(","):
            folder = self.args.work / "videos" / name
            if time.time() < self.deadline:
                self.generate(name, 0, self.args.prompts, folder, ".mp4")


def verdicts(args):
    """Share of the clips in work/videos/NAME that show what was asked for, in percent."""
    try:
        from tools.tiny_video.judge import ASPECTS, judge, read_video
    except ImportError:
        return {}
    labels = json.loads((args.model / "prompts/heldout_prompts.json").read_text())
    shares = {}
    for folder in sorted((args.work / "videos").glob("*")):
        seen = [judge(read_video(path), labels[int(path.stem.split("_")[1])]) for path in sorted(folder.glob("v_*.mp4"))]
        shares[folder.name] = {aspect: 100 * statistics.mean(each[aspect] for each in seen) for aspect in ASPECTS}
    return shares


def peer_rows(args, dense_forwards):
    """Of all files; each may hold other prompts."""
    parts = {}
    for path in args.peers:
        for row in json.loads(path.read_text())["rows"]:
            parts.setdefault((row["rule"], pathlib.Path(row["masks"] or "").stem, row["target_forwards"]), []).append(row)
    rows = []
    for (rule, masks, _), of_prompts in parts.items():
        values = [value for part in of_prompts for value in part["each_db"]]
        density = of_prompts[0]["density"]
        forwards = sum(part["forwards"] * part["prompts"] for part in of_prompts) / len(values)
        rows.append({"recipe": rule + (" and our masks" if masks else ""), "asked": "", "cost": forwards / dense_forwards * forward_cost(density, args.share),
                     "forwards": forwards, "density": density, "prompts": len(values), "psnr_db": statistics.median(values), "worst_db": min(values)})  # fmt: skip
    return rows


def collect(args):
    runs = {path.stem: json.loads(path.read_text()) for path in sorted((args.work / "results").glob("*.json"))}
    if "dense" not in runs:
        sys.exit("no results: run first")
    judged, rows = verdicts(args), []
    for name, each in runs.items():
        if name == "dense":
            continue
        kind, _, speedup = name.partition("_")
        calibration = args.work / "plans" / f"{name}.json"
        known = json.loads(calibration.read_text()) if calibration.exists() else {}
        dense_seconds = sum(runs["dense"]["transformer_seconds"][: each["prompts"]])
        cost = each["forwards"] / runs["dense"]["forwards"] * forward_cost(each["density"], args.share)
        rows.append({"recipe": NAMES.get(kind, kind), "asked": speedup, "cost": cost, "forwards": each["forwards"],
                     "density": each["density"], "prompts": each["prompts"], "psnr_db": statistics.median(each["psnr_db"]), "worst_db": min(each["psnr_db"]),
                     "speedup_measured": dense_seconds / sum(each["transformer_seconds"]), "ssim": statistics.median(each["ssim"]),
                     "predicted_db": known.get("psnr_db"), "checked_db": known.get("psnr_measured"), "judged": judged.get(name)})  # fmt: skip
    rows += peer_rows(args, runs["dense"]["forwards"])
    rows.sort(key=lambda row: (row["recipe"], -row["cost"]))
    return {"share": args.share, "dense_judged": judged.get("dense"), "table": rows, "runs": runs}


def write_table(result, path):
    lines = ["| what | cost | forwards | density of these | prompts | PSNR dB, median (worst) | predicted (checked) | transformer × measured | colour / shape / motion |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in result["table"]:
        text = {key: "" if row.get(key) is None else f"{row[key]:.1f}" for key in ("predicted_db", "checked_db")}
        predicted = text["predicted_db"] + (f" ({text['checked_db']})" if text["checked_db"] else "")
        speedup = f"{row['speedup_measured']:.2f}" if "speedup_measured" in row else ""
        judged = " / ".join(f"{row['judged'][a]:.0f}" for a in ("colour", "shape", "motion")) if row.get("judged") else ""
        lines.append(f"| {row['recipe']} | {row['cost']:.3f} | {row['forwards']:g} | {row['density']:.2f} | {row['prompts']} | "
                     f"{row['psnr_db']:.1f} ({row['worst_db']:.1f}) | {predicted} | {speedup} | {judged} |")  # fmt: skip
    path.write_text("\n".join(lines) + "\n")


def plot(table, path):
    pyplot = pyplot_to_files()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.8), sharey=True)
    for recipe in dict.fromkeys(row["recipe"] for row in table):
        rows = sorted((row for row in table if row["recipe"] == recipe), key=lambda row: row["cost"])
        style = "o-" if recipe.startswith("ours") else "s--" if "masks" in recipe else "^:"
        for axis, key in zip(axes, ("psnr_db", "worst_db")):
            axis.plot([row["cost"] for row in rows], [row[key] for row in rows], style, label=recipe, markersize=4)
    for axis, title in zip(axes, ("median", "worst")):
        axis.set_xlabel("cost of the transformer, dense = 1")
        axis.set_title(f"PSNR against dense, dB: {title}")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    args = arguments()
    if args.only in (None, "plans"):
        make_plans(args)
    if args.only in (None, "runs"):
        Runs(args).all()
    if args.only in (None, "videos"):
        Runs(args).videos()
    if args.only in (None, "summary"):
        result = collect(args)
        (args.work / "reuse.json").write_text(json.dumps(result, indent=1) + "\n")
        write_table(result, args.work / "reuse.md")
        plot([row for row in result["table"] if row["recipe"] in NAMES.values() or not row["asked"]], args.work / "reuse.png")
        print((args.work / "reuse.md").read_text())


if __name__ == "__main__":
    main()
