"""Cost of the transformer against fidelity: masks, steps that run no forward, both, and really fewer steps.

    python3 -m tools.reuse_tradeoff [--prompts 64] [--speedups 1.5,2,3,4] [--jobs 4]       # all of it
    python3 -m tools.reuse_tradeoff --only plans       # calibrates and compiles; the plans may run elsewhere
    python3 -m tools.reuse_tradeoff --only plans --mask-densities .86,.81,.73   # also masks alone of these, into --work/masks, for peers' rules
    python3 -m tools.reuse_tradeoff --only runs        # every plan in --work/plans, also others that were put there
    python3 -m tools.reuse_tradeoff --only runs --judged dense,both_2      # also their videos for the judge, into --work/videos
    python3 -m tools.reuse_tradeoff --only summary --peers steps.json      # table and plot, with peers' (python -m tools.peers.steps)

Every plan makes held-out prompts, and each video is compared with the dense one of its seed. The cost is that of forwards and density at the
attention's share of the transformer (--share); the transformer's seconds are written too. Everything is kept under --work: runs that are there
are not repeated. Writes reuse.json, reuse.md and reuse.png.
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import sys

from tools.plotting import pyplot_to_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
SKIPPING_EFFICIENCY, SUMMARY_PAIRS = 0.93, 1 / 64  # as calibrate takes them, for blocks of 64
NAMES = {"both": "ours: reuse and masks", "reuse": "ours: reuse alone", "masks": "ours: masks alone", "steps": "fewer steps"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibatt", type=pathlib.Path, default=ROOT / "build/cpu/calibatt")
    parser.add_argument("--bench", type=pathlib.Path, default=ROOT / "build/cpu/bench/calibatt_plan_quality_bench")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/tiny-wan")
    parser.add_argument("--speedups", default="1.5,2,3,4")
    parser.add_argument("--mask-densities", default="", help="plans of masks alone, beside those of the speedups, into --work/masks")
    parser.add_argument("--calibration-prompts", type=int, default=4)
    parser.add_argument("--profile", type=pathlib.Path, help="measurements that are there already [--work/profile]")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1, help="of the first held-out prompt; the i-th has seed + i")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.82, help="attention's share of a dense forward")
    parser.add_argument("--flags", default="", help="more of calibrate's and the bench's, such as '--dtype fp16'")
    parser.add_argument("--only", choices=("plans", "runs", "summary"))
    parser.add_argument("--judged", default="", help="whose videos are kept for the judge: dense, names of plans")
    parser.add_argument("--peers", type=pathlib.Path, nargs="*", default=[], help="steps.json of tools.peers.steps")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the prompts")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begins no prompt after that")
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
    args.work.mkdir(parents=True, exist_ok=True)
    prompts = args.work / "calibration_prompts.txt"
    lines = (args.model / "prompts/calibration_prompts.txt").read_text().splitlines()[: args.calibration_prompts]
    prompts.write_text("\n".join(lines) + "\n")
    wanted = {f"masks/density_{density}": ["--density", density] for density in filter(None, args.mask_densities.split(","))}
    for text in args.speedups.split(","):
        speedup = float(text)
        wanted[f"plans/both_{speedup:g}"] = ["--speedup", speedup]
        wanted[f"plans/reuse_{speedup:g}"] = ["--speedup", speedup, "--density", 1]
        if (density := density_at(1 / speedup, args.share)) > 0.05:
            wanted[f"plans/masks_{speedup:g}"] = ["--density", f"{density:.3f}"]
    for name, flags in wanted.items():
        path = args.work / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            run(args.calibatt, "calibrate", "-m", args.model, "--prompts", prompts, "--profile", args.profile or args.work / "profile", "-o", path,
                "--report", path.with_suffix(".json"), "--steps", args.steps, "--attention-share", args.share, *args.flags.split(), *flags)  # fmt: skip
            print(f"compiled {name}", file=sys.stderr)


def runs(args):
    """Held-out prompts by all plans, each against the dense video of its prompt and seed: --jobs processes share the prompts."""
    results = args.work / "results"
    results.mkdir(parents=True, exist_ok=True)

    def is_done(name):
        path = results / f"{name}.json"
        return path.exists() and len(json.loads(path.read_text())["prompts"]) >= args.prompts

    plans = [path for path in sorted((args.work / "plans").glob("*.safetensors")) if not is_done(path.stem)]
    fewer = [steps for text in args.speedups.split(",") if not is_done(f"steps_{(steps := round(args.steps / float(text)))}")]
    if not plans and not fewer:
        return
    command = [args.bench, "-m", args.model, "--prompts", args.model / "prompts/heldout.txt", "--max-prompts", args.prompts, "--every", args.jobs,
               "--seed", args.seed, "--steps", args.steps, "--seconds", min(args.seconds, 1e9), *args.flags.split()]  # fmt: skip
    command += [part for path in plans for part in ("--plan", f"{path.stem}={path}")] + [part for steps in fewer for part in ("--fewer", steps)]
    if args.judged:
        command += ["--videos", args.work / "videos", *(part for name in args.judged.split(",") for part in ("--judged", name))]
    lines = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for output in pool.map(lambda job: lines_of([*command, "--first", job]), range(args.jobs)):
            lines += output
    for name in dict.fromkeys(line["name"] for line in lines):
        of_name = sorted((line for line in lines if line["name"] == name), key=lambda line: line["prompt"])
        same = {key: of_name[0][key] for key in ("forwards", "density", "step_reuse", "precision", "device", "threads")}
        keys = ("transformer_seconds", "attention_seconds", *(key for key in ("psnr_db", "ssim", "flicker") if key in of_name[0]))
        result = {"plan": name, "prompts": [line["prompt"] for line in of_name], **same, **{key: [line[key] for line in of_name] for key in keys}}
        (results / f"{name}.json").write_text(json.dumps(result) + "\n")


def lines_of(command):
    """What it printed; also of one that failed, with what it said."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        print(f"{command[0]}: {result.stderr.strip()[-500:]}", file=sys.stderr, flush=True)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.endswith("}")]
    return [{**line, "psnr_db": 200.0} if line.get("psnr_db", 0) is None else line for line in lines]  # of equal videos


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
    """Of all files; each may hold other prompts. Of the masks that a rule ran with at one speedup, those with the best median."""
    parts = {}
    for path in args.peers:
        for row in json.loads(path.read_text())["rows"]:
            if row["rule"] == "ours":  # the same plans as in --work
                continue
            masks = pathlib.PurePath(row.get("masks") or "").name.removesuffix(".safetensors")
            parts.setdefault((row["rule"], masks, row.get("speedup"), row.get("target_forwards")), []).append(row)
    best = {}
    for (rule, masks, speedup, target), of_prompts in parts.items():
        values = [value for part in of_prompts for value in part["each_db"]]
        density = of_prompts[0].get("density", 1.0)  # older files know no masks
        forwards = sum(part["forwards"] * part["prompts"] for part in of_prompts) / len(values)
        row = {"recipe": rule + (" and our masks" if masks else ""), "asked": "", "cost": forwards / dense_forwards * forward_cost(density, args.share),
               "forwards": forwards, "density": density, "prompts": len(values), "psnr_db": statistics.median(values), "worst_db": min(values)}  # fmt: skip
        key = (rule, bool(masks), speedup, target)
        if key not in best or row["psnr_db"] > best[key]["psnr_db"]:
            best[key] = row
    return list(best.values())


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
        seconds_of_dense = dict(zip(runs["dense"]["prompts"], runs["dense"]["transformer_seconds"]))
        dense_seconds = sum(seconds_of_dense[prompt] for prompt in each["prompts"])
        cost = each["forwards"] / runs["dense"]["forwards"] * forward_cost(each["density"], args.share)
        rows.append({"recipe": NAMES.get(kind, kind), "asked": speedup, "cost": cost, "forwards": each["forwards"],
                     "density": each["density"], "prompts": len(each["prompts"]), "psnr_db": statistics.median(each["psnr_db"]), "worst_db": min(each["psnr_db"]),
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
    axes[1].legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    args = arguments()
    if args.only in (None, "plans"):
        make_plans(args)
    if args.only in (None, "runs"):
        runs(args)
    if args.only in (None, "summary"):
        result = collect(args)
        (args.work / "reuse.json").write_text(json.dumps(result, indent=1) + "\n")
        write_table(result, args.work / "reuse.md")
        plot([row for row in result["table"] if row["recipe"] in NAMES.values() or not row["asked"]], args.work / "reuse.png")
        print((args.work / "reuse.md").read_text())


if __name__ == "__main__":
    main()
