"""The examples run, and make what the command line makes."""

import importlib.util
import re
import sys

import numpy as np
from conftest import ROOT, flags, run_program
from PIL import Image

import calibatt

SMALL = dict(height=96, width=112, num_frames=17, num_inference_steps=4, guidance_scale=4.0)


def load(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CALL", SMALL)
    return module


def test_tiny_wan_is_the_command_lines(monkeypatch, tmp_path):
    """The same PSNR between the dense and the planned video, within a tenth of a decibel."""
    example = load("tiny_wan_diffusers", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["example", "--density", "0.7", "--output", str(tmp_path / "out.webp"), "--plan", str(tmp_path / "plan.safetensors")])
    ours = example.main()
    with Image.open(tmp_path / "out.webp") as video:
        assert video.n_frames == SMALL["num_frames"] and video.size == (2 * SMALL["width"], SMALL["height"])
    (tmp_path / "prompts.txt").write_text("\n".join(example.CALIBRATION))
    common = ["-m", example.MODEL, "--dtype", "fp32", *flags(SMALL)]
    run_program("calibrate", *common, "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "theirs.safetensors", "--density", 0.7)
    videos = []
    for number, plan in enumerate([[], ["--plan", tmp_path / "theirs.safetensors"]]):
        run_program("generate", *common, "-p", example.PROMPT, "-s", 1, "-o", tmp_path / f"{number}.png", *plan)
        videos.append(np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob(f"{number}_*.png"))]))
    assert abs(ours - example.psnr(*videos)) < 0.1


def test_walk_through(monkeypatch, tmp_path, capsys):
    """Every block of the page runs, one after the other."""
    text = (ROOT / "examples/calibrate_and_generate.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) >= 7
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    scope = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number + 1}", "exec"), scope)
        if number == 0:
            scope["CALL"] = SMALL
        if "calibatt.calibrate" in block:
            assert isinstance(scope["plan"], calibatt.Plan)
    assert "17 frames of 112×96" in capsys.readouterr().out  # the message of what does not fit
