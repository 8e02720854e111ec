"""Golden data of text cleaning, tokenizer, schedulers and random numbers, from diffusers, transformers and torch.

    python tools/golden/text_and_scheduler.py [random|scheduler|text|tokenizer ...]     (all without arguments)

Writes tests/golden/data/{random,scheduler}.safetensors, text_clean.json and tokenizer/. Deterministic.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data"


def make_random():
    """torch.randn of CPU generators: sizes on both sides of torch's two paths, seeds beyond 32 bits, calls in a row."""
    tensors = {}
    for seed in (0, 42, 2**32 + 42, 2**40 + 123456789, 2**63 - 1):
        for size in (1, 5, 15, 16, 17, 100):
            generator = torch.Generator("cpu").manual_seed(seed)
            tensors[f"{seed}/{size}"] = torch.randn(size, generator=generator, dtype=torch.float32)
    generator = torch.Generator("cpu").manual_seed(7)
    tensors["7/4096"] = torch.randn(4096, generator=generator, dtype=torch.float32)
    generator = torch.Generator("cpu").manual_seed(9)
    for i, size in enumerate((3, 17, 4, 1, 32, 2)):
        tensors[f"9/row/{i}/{size}"] = torch.randn(size, generator=generator, dtype=torch.float32)
    save_file(tensors, DATA / "random.safetensors")


SCHEDULERS = {
    # name: (class, settings, steps, shifts)
    "unipc": ("UniPCMultistepScheduler", {}, (1, 2, 4, 15, 50), (1.0, 3.0, 5.0, 8.0)),
    "unipc_order1": ("UniPCMultistepScheduler", {"solver_order": 1}, (4, 15), (1.0, 5.0)),
    "unipc_order3": ("UniPCMultistepScheduler", {"solver_order": 3}, (2, 4, 15, 50), (1.0, 5.0)),
    "unipc_bh1": (
        "UniPCMultistepScheduler",
        {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min"},
        (4, 15),
        (1.0, 5.0),
    ),
    "unipc_no_corrector": ("UniPCMultistepScheduler", {"disable_corrector": [0, 1, 4]}, (4, 15), (3.0,)),
    "euler": ("FlowMatchEulerDiscreteScheduler", {}, (1, 2, 4, 15, 50), (1.0, 3.0, 5.0, 8.0)),
}


def toy_model(sample, timestep):
    """Some smooth function of the sample and the time, in float32 arithmetic that C++ repeats exactly."""
    t = torch.tensor(float(timestep), dtype=torch.float32) / 1000
    return sample * (0.75 - 0.5 * t) - (0.3 + t) / (1 + sample * sample)


def make_scheduler():
    import diffusers

    tensors = {}
    first = torch.randn(1, 4, 1, 1, 2, generator=torch.Generator("cpu").manual_seed(3), dtype=torch.float32)
    tensors["first"] = first
    configs = {}
    for name, (cls, settings, all_steps, shifts) in SCHEDULERS.items():
        if cls.startswith("UniPC"):
            settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, **settings}
        for shift in shifts:
            shift_key = "flow_shift" if cls.startswith("UniPC") else "shift"
            scheduler = getattr(diffusers, cls)(**settings, **{shift_key: shift})
            configs[name] = dict(scheduler.config)
            for steps in all_steps:
                scheduler.set_timesteps(steps)
                sample = first.clone()
                halfway = None
                for i, t in enumerate(scheduler.timesteps):
                    sample = scheduler.step(toy_model(sample, t), t, sample, return_dict=False)[0]
                    if i == (steps - 1) // 2:
                        halfway = sample
                assert torch.isfinite(sample).all(), (name, steps, shift)
                key = f"{name}/{steps}/{shift:g}"
                tensors[f"{key}/sigmas"] = scheduler.sigmas.float()
                tensors[f"{key}/timesteps"] = scheduler.timesteps.float()
                tensors[f"{key}/halfway"] = halfway.clone()
                tensors[f"{key}/last"] = sample.contiguous()
    save_file(tensors, DATA / "scheduler.safetensors")
    for name, config in configs.items():
        config = {"_class_name": SCHEDULERS[name][0], **{k: v for k, v in config.items() if k[0] != "_"}}
        (DATA / "scheduler").mkdir(exist_ok=True)
        (DATA / "scheduler" / f"{name}.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


MAKERS = {"random": make_random, "scheduler": make_scheduler}

if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    for maker in sys.argv[1:] or MAKERS:
        MAKERS[maker]()
