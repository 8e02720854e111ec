"""What the tests of the Python package share: the built library and program, the shipped models as pipes, and plans of a small size.

    python -m pytest tests/python

They need torch, diffusers, transformers, peft, accelerate and ftfy, and a build: CALIBATT_LIBRARY and CALIBATT_PROGRAM say where it is, else
build/cpu.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tools"), str(Path(__file__).parent)]
import plan_reader  # noqa: E402

os.environ.setdefault("CALIBATT_LIBRARY", str(ROOT / "build/cpu/libcalibatt.so"))
PROGRAM = os.environ.get("CALIBATT_PROGRAM", str(ROOT / "build/cpu/calibatt"))
PROMPTS = ["a red circle moves to the right over stripes", "a blue star rotates over waves"]
PROMPT = "a green square bounces over a checkerboard"
#: Of each model: the arguments of a pipe's call, small and with blocks that do not divide the tokens.
CALLS = {
    "wan": dict(height=96, width=112, num_frames=17, num_inference_steps=4, guidance_scale=4.0),
    "mochi": dict(height=96, width=112, num_frames=13, num_inference_steps=7, guidance_scale=4.5),  # one σ is rounded otherwise than ours
}  # fmt: skip
SETTINGS = {"token_order": "tiles:2x2x4", "block_q": 16, "block_k": 16}
DENSITY = 0.5

torch.set_grad_enabled(False)


def run_program(*arguments):
    """The command line's program; its output is the failure's text."""
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def flags(call):
    """A pipe's arguments as the command line spells them."""
    names = dict(height="--height", width="--width", num_frames="--video-frames", num_inference_steps="--steps", guidance_scale="--cfg-scale")
    return [text for name, value in call.items() for text in (names[name], value)]


def setting_flags(settings):
    return [text for name, value in settings.items() for text in ("--" + name.replace("_", "-"), value)]


@pytest.fixture(autouse=True, scope="session")
def fingerprint_cache(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def loaded():
    """Pipes in float32, loaded once; tests use copies."""
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    pipes = {}
    for name, cls in (("wan", diffusers.WanPipeline), ("mochi", diffusers.MochiPipeline)):
        pipes[name] = cls.from_pretrained(ROOT / f"models/tiny-{name}", dtype=torch.float32)
        pipes[name].set_progress_bar_config(disable=True)
    return pipes


def copied(pipe):
    """A pipe of its own transformer and scheduler; what calibatt does not touch is shared."""
    own = {name: copy.deepcopy(pipe.components[name]) for name in ("transformer", "transformer_2", "scheduler") if name in pipe.components}
    result = type(pipe)(**{**pipe.components, **own})
    result.register_to_config(_name_or_path=pipe.config._name_or_path)
    result.set_progress_bar_config(disable=True)
    return result


@pytest.fixture
def wan(loaded):
    return copied(loaded["wan"])


@pytest.fixture
def mochi(loaded):
    return copied(loaded["mochi"])


@pytest.fixture(params=["wan", "mochi"])
def model(request):
    return request.param


@pytest.fixture
def pipe(loaded, model):
    return copied(loaded[model])


@pytest.fixture(scope="session")
def plans(tmp_path_factory):
    """Plans made by the command line, of each model: {"wan": path, "mochi": path}."""
    folder = tmp_path_factory.mktemp("plans")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    made = {}
    for name, call in CALLS.items():
        made[name] = folder / f"{name}.safetensors"
        run_program("calibrate", "-m", ROOT / f"models/tiny-{name}", "--prompts", folder / "prompts.txt", "-o", made[name], "--dtype", "fp32",
                    "--density", DENSITY, *flags(call), *setting_flags(SETTINGS))  # fmt: skip
    return made


def with_reuse(plan, path, reuse):
    """A copy of a plan file by which some steps run no forward (docs/plan_format.md)."""
    return with_said(plan, path, step_reuse=reuse)


def with_said(plan, path, **said):
    """A copy of a plan file that also says this."""
    content = Path(plan).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header["__metadata__"]
    metadata["plan"] = json.dumps({**json.loads(metadata["plan"]), **said})
    metadata["checksum"] = plan_reader.xxh3_128(plan_reader.checksummed_bytes(plan_reader.read_safetensors(plan)[0], metadata))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    return path


def add_lora(pipe, seed=5, name="style"):
    from peft import LoraConfig

    torch.manual_seed(seed)
    pipe.transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), name)


def latents_of(pipe, call, seed=3, prompt=PROMPT, **more):
    return pipe(prompt=prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **{**call, **more}).frames


def relative(a, b):
    """‖a − b‖ / ‖b‖"""
    return float((a.double() - b.double()).norm() / b.double().norm())
