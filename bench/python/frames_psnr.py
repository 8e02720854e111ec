"""PSNR of videos kept as numbered PNG frames against dense ones, with what their runs' reports say.

    calibatt generate --prompts PROMPTS --seed 1 -o dense.png                       # and with --plan P -o NAME.png for each plan
    python frames_psnr.py FOLDER dense NAME… > results.json

The frames are what `calibatt bench` compares, so the numbers are its own; dense videos are made once for many plans.
"""
import argparse
import json
import pathlib
import statistics

import numpy as np
from PIL import Image


def frames(folder, name, prompt):
    files = sorted(folder.glob(f"{name}_{prompt:04d}_*.png"))
    return np.stack([np.asarray(Image.open(file).convert("RGB"), np.float64) for file in files])


def report(folder, name, prompt):
    return json.loads((folder / f"{name}_{prompt:04d}.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("dense")
    parser.add_argument("names", nargs="+")
    arguments = parser.parse_args()
    prompts = len(list(arguments.folder.glob(f"{arguments.dense}_[0-9][0-9][0-9][0-9].json")))
    dense = [frames(arguments.folder, arguments.dense, prompt) for prompt in range(prompts)]
    dense_reports = [report(arguments.folder, arguments.dense, prompt) for prompt in range(prompts)]
    results = {}
    for name in arguments.names:
        reports = [report(arguments.folder, name, prompt) for prompt in range(prompts)]
        errors = [np.square(dense[prompt] - frames(arguments.folder, name, prompt)).mean() for prompt in range(prompts)]
        psnr = [round(float(10 * np.log10(255**2 / error)), 2) for error in errors]
        speedups = [a["seconds"]["transformer"] / b["seconds"]["transformer"] for a, b in zip(dense_reports, reports)]
        results[name] = {
            "psnr_db": {"median": statistics.median(psnr), "worst": min(psnr), "of_prompts": psnr},
            "speedup_transformer": {"median": round(statistics.median(speedups), 3), "of_prompts": [round(each, 3) for each in speedups]},
            "forwards": reports[0]["forwards"],
            "reused_steps": reports[0]["reused_steps"],
            "step_reuse": reports[0]["step_reuse"],
            "density": reports[0]["density"],
        }
    print(json.dumps({"prompts": [each["prompt"] for each in dense_reports], "runs": results}, indent=1))


if __name__ == "__main__":
    main()
