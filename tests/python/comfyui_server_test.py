"""The example workflows on ComfyUI's own server, where COMFYUI_DIR is a checkout of it: headless, on a CPU, on this machine's loopback.

The transformer and the autoencoder are ComfyUI's, loaded by its nodes from files of small random weights. Its text encoder has one size only,
which is too large for a test: a node of the test's own gives random conditionings in its place. What is large is made small: the
video's size and the number of steps.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from calibatt import _library

COMFYUI = os.environ.get("COMFYUI_DIR")
pytestmark = pytest.mark.skipif(not COMFYUI, reason="COMFYUI_DIR is not set to a checkout of ComfyUI")
ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "integrations/comfyui/example_workflows"
PAUSE, PATIENCE = 0.2, 600

TEST_NODES = """
import torch

class CLIPLoader:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"clip_name": ("STRING", {}), "type": ("STRING", {}), "device": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "load", "test"

    def load(self, **_):
        return (None,)

class CLIPTextEncode:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {}), "clip": ("CLIP",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "encode", "test"

    def encode(self, text, clip):
        return ([[torch.randn(1, 7, 4096, generator=torch.Generator().manual_seed(len(text))), {}]],)

NODE_CLASS_MAPPINGS = {"TestCLIPLoader": CLIPLoader, "TestCLIPTextEncode": CLIPTextEncode}
"""


def in_comfyui(code, *arguments):
    """Runs code with ComfyUI's modules, in a process of its own."""
    head = "import sys; sys.path.insert(0, sys.argv[1]); import comfy.cli_args; comfy.cli_args.args.cpu = True\n"
    subprocess.run([sys.executable, "-c", head + code, COMFYUI, *map(str, arguments)], check=True, cwd=COMFYUI, timeout=PATIENCE)


MAKE_MODELS = """
import torch, comfy.ops, comfy.ldm.wan.model, comfy.ldm.wan.vae
from pathlib import Path
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[3])
from comfyui_host import random_weights
folder = Path(sys.argv[2])
wan = comfy.ldm.wan.model.WanModel("t2v", dim=256, ffn_dim=128, in_dim=16, out_dim=16, num_heads=2, num_layers=3,
                                   operations=comfy.ops.disable_weight_init, dtype=torch.float32)
for name in ("wan2.1_t2v_1.3B_fp16", "wan2.2_t2v_high_noise_14B_fp16", "wan2.2_t2v_low_noise_14B_fp16"):
    save_file(random_weights(wan), folder / "diffusion_models" / (name + ".safetensors"))
vae = comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0)
torch.manual_seed(0)
weights = {name: torch.randn(each.shape) / each[0].numel() ** 0.5 if "weight" in name else torch.ones(each.shape) * ("gamma" in name)
           for name, each in vae.state_dict().items()}
save_file({name: each.half() for name, each in weights.items()}, folder / "vae/wan_2.1_vae.safetensors")
"""


class Server:
    def __init__(self, base):
        self.base, self.log = base, base / "log.txt"
        for name in ("custom_nodes", "models/diffusion_models", "models/vae", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True)
        (base / "custom_nodes/calibatt").symlink_to(ROOT / "integrations/comfyui")
        (base / "custom_nodes/test_nodes.py").write_text(TEST_NODES)
        in_comfyui(MAKE_MODELS, base / "models", ROOT / "tests/python")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "CALIBATT_LIBRARY": str(_library.library_path())}
        command = [sys.executable, f"{COMFYUI}/main.py", "--cpu", "--listen", "127.0.0.1", "--port", self.port, "--base-directory", base]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*map(str, command), "--disable-auto-launch"], stdout=log, stderr=log, env=environment, cwd=base)
        self.nodes = self.wait(lambda: self.get("object_info"))

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}") as reply:
            return json.load(reply)

    def wait(self, ask):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                found = ask()
                if found:
                    return found
            except OSError:
                pass
            time.sleep(PAUSE)
        raise AssertionError(f"no answer in {PATIENCE} s:\n{self.log.read_text()[-3000:]}")

    def run(self, prompt):
        """Outputs of the workflow, and what was logged while it ran. Its sampler ran: ComfyUI keeps the last prompt's results."""
        before = len(self.log.read_text())
        body = json.dumps({"prompt": prompt}).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{self.port}/prompt", body, {"Content-Type": "application/json"})
        ) as reply:
            answer = json.load(reply)
        done = self.wait(lambda: self.get(f"history/{answer['prompt_id']}").get(answer["prompt_id"]))
        logged = self.log.read_text()[before:]
        assert done["status"]["status_str"] == "success", logged[-3000:]
        cached = {number for kind, message in done["status"]["messages"] if kind == "execution_cached" for number in message["nodes"]}
        assert not any("Sampler" in node["class_type"] and number in cached and node["class_type"].startswith("K") for number, node in prompt.items())
        return done["outputs"], logged

    def prompt(self, name, changes):
        """A workflow of the browser as the API wants it, its nodes keyed by type (Apply Plan's and samplers' by type and place)."""
        workflow = json.loads((WORKFLOWS / name).read_text())
        sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
        prompt = {}
        for node in workflow["nodes"]:
            kind = "Test" + node["type"] if node["type"].startswith("CLIP") else node["type"]
            inputs = {each["name"]: sources[each["link"]] for each in node["inputs"]}
            values = iter(node["widgets_values"])
            known = self.nodes[kind]["input"]
            for section in ("required", "optional"):
                for field, (field_type, *options) in known.get(section, {}).items():
                    if field in inputs or not (isinstance(field_type, list) or field_type in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")):
                        continue
                    inputs[field] = next(values)
                    if options and options[0].get("control_after_generate"):
                        next(values)
            assert next(values, None) is None, f"{name}: {node['type']} has more values than inputs"
            inputs.update(changes.get(node["type"], {}))
            prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
        return prompt


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("comfyui"))
    yield started
    started.process.terminate()
    started.process.wait(60)


SMALL = {"EmptyHunyuanLatentVideo": {"width": 128, "height": 96, "length": 9}, "KSampler": {"steps": 4, "cfg": 4.0, "sampler_name": "euler"},
         "CalibattCalibrate": {"plan_name": "small", "density": 0.4, "settings": "block-q=16 block-k=16"},
         "CalibattLoadPlan": {"plan_name": "small.safetensors"}}  # fmt: skip


def pictures(server, outputs):
    from PIL import Image, ImageSequence

    (saved,) = [each for output in outputs.values() for each in output.get("images", [])]
    with Image.open(server.base / "output" / saved["filename"]) as image:
        return torch.stack(
            [torch.frombuffer(bytearray(frame.convert("RGB").tobytes()), dtype=torch.uint8) for frame in ImageSequence.Iterator(image)]
        )


def without(prompt, kind):
    """The same workflow with the node removed, its model connected through."""
    (number,) = [number for number, node in prompt.items() if node["class_type"] == kind]
    rest = {other: dict(node) for other, node in prompt.items() if other != number and [number, 1] not in node["inputs"].values()}
    for node in rest.values():
        node["inputs"] = {name: prompt[number]["inputs"]["model"] if value == [number, 0] else value for name, value in node["inputs"].items()}
    return rest


DENSITY = re.compile(r"calibatt: density ([\d.]+) over (\d+) attention calls")


def test_calibrate_then_apply_then_remove(server):
    calibration = server.prompt("wan2.1_calibrate.json", SMALL)
    dense = pictures(server, server.run(without(calibration, "CalibattCalibrate"))[0])
    outputs, logged = server.run(calibration)
    assert "this run measured; small.safetensors is made of 1 run" in logged
    assert (server.base / "models/calibatt/small.safetensors").is_file()
    measured = pictures(server, outputs)
    assert measured.shape == dense.shape
    # Of 255. The autoencoder of random weights enlarges what float32 rounds otherwise; comfyui_real_test.py compares latents.
    assert difference(measured, dense) < 1

    another = {**SMALL, "KSampler": {**SMALL["KSampler"], "seed": 8}}
    assert "small.safetensors is made of 2 runs" in server.run(server.prompt("wan2.1_calibrate.json", another))[1]

    server.nodes = server.get("object_info")  # the browser's list of plans has it now
    planned = server.prompt("wan2.1_apply_plan.json", {**SMALL, "CalibattApplyPlan": {"on_mismatch": "error"}})  # as older workflows have it
    outputs, logged = server.run(planned)
    density, calls = DENSITY.search(logged).groups()
    assert float(density) == pytest.approx(0.4, abs=0.03) and int(calls) in (4 * 3, 4 * 2 * 3)  # both branches in one batch, or not
    assert any("text" in output for output in outputs.values())  # the summary in its preview
    changed = difference(pictures(server, outputs), dense)
    print(f"density {density}; difference of 255: measured {difference(measured, dense):.5f}, planned {changed:.3f}")
    assert changed > 5 * difference(measured, dense) + 1

    outputs, logged = server.run(without(planned, "CalibattApplyPlan"))
    assert "calibatt:" not in logged and torch.equal(pictures(server, outputs), dense)


def test_two_transformers_each_with_its_part_of_the_steps(server):
    size = {"EmptyHunyuanLatentVideo": SMALL["EmptyHunyuanLatentVideo"]}
    coarse = {"CalibattCalibrate": {"density": 0.4, "settings": "block-q=16 block-k=16"}}
    _, logged = server.run(server.prompt("wan2.2_a14b_calibrate.json", {**size, **coarse}))
    assert "my_plan_high.safetensors is made of 1 run" in logged and "my_plan_low.safetensors is made of 1 run" in logged
    server.nodes = server.get("object_info")
    _, logged = server.run(server.prompt("wan2.2_a14b_apply_plan.json", size))
    found = DENSITY.findall(logged)
    assert [float(density) for density, _ in found] == pytest.approx([0.4, 0.4], abs=0.03)
    assert "use the plan's" not in logged  # each plan has the very steps of its part of the schedule


def difference(one, other):
    return float((one.float() - other.float()).abs().mean())
