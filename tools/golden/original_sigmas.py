"""Golden data of Wan-AI's own spacing of noise levels, made with their scheduler.

    WAN_DIR=<a clone of github.com/Wan-Video/Wan2.1> python tools/golden/original_sigmas.py

Writes tests/golden/data/scheduler/original_sigmas.json. Without WAN_DIR it says so and leaves the file as it is.
"""

import importlib.util
import json
import os
import pathlib
import sys

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data/scheduler"


def main():
    folder = os.environ.get("WAN_DIR")
    if folder is None:
        print("original_sigmas.py: WAN_DIR names no clone of Wan-Video/Wan2.1; its data stays as it is", file=sys.stderr)
        return
    path = pathlib.Path(folder) / "wan/utils/fm_solvers_unipc.py"
    spec = importlib.util.spec_from_file_location("fm_solvers_unipc", path)
    solvers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(solvers)
    runs = []
    for steps in (1, 2, 4, 20, 50, 100):
        for shift in (1.0, 3.0, 5.0, 12.0):
            scheduler = solvers.FlowUniPCMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
            scheduler.set_timesteps(steps, shift=shift)
            runs.append({"steps": steps, "shift": shift, "sigmas": scheduler.sigmas.tolist(),
                         "timesteps": scheduler.timesteps.tolist()})
    lines = ",\n".join(json.dumps(run) for run in runs)
    (DATA / "original_sigmas.json").write_text(f"[\n{lines}\n]\n")


main()
