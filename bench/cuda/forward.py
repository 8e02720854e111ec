#!/usr/bin/env python3
"""Times one forward of Wan 2.1's transformer, or both of a guided step of Mochi 1's, ours beside diffusers', on one GPU, in one run.

The sizes are the public models' with random weights (the time depends on shapes and masks alone) and fewer layers or all, both sides the
same; ours runs in a process of its own (calibatt_forward_bench --serve) that loads what diffusers saved. First the predictions at a small
size, dense and planned: our error against diffusers in float32, over diffusers' own error in --dtype (bf16 or fp16, both sides the same);
where planned, diffusers' self-attention has the same masks, token by token. The dense one also at the timed size, against diffusers in that
dtype. What is wrong is not timed. Then, model by model and round by round, all competitors run in random order; a figure is the median over
rounds of a ratio within one round. diffusers runs with the fastest of the attention backends that work here (chosen eager), eager and
compiled, its weights in that dtype but those that it keeps in float32 itself. Times are each side's own clock around one run that the
device has finished. Diffusers' includes the text's projections; ours has them ready, as generation does (once a video). Our peak memory is
the process's, all runs together. The output is written after every round.

Needs torch (CUDA), diffusers and safetensors. Usage: forward.py --server PATH/calibatt_forward_bench --output result.json
On a CPU, to try it: forward.py --server … --model small,mochi-small --layers 2 --server-args "--backend cpu" --no-compile
"""

import argparse
import contextlib
import json
import random
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy
import torch
from attention import commit_of_checkout, describe_machine
from forward_figures import EIGHT_BITS, OURS, make_figures
from forward_rivals import BLOCK, DEVICE, RIVALS
from masks import make_mask
from safetensors.torch import load_file, save_file

LARGE = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "text_dim": 4096}
SMALLER = {**LARGE, "num_attention_heads": 12, "ffn_dim": 8960}
TINY = {"num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 512, "text_dim": 64}
MOCHI = {"num_attention_heads": 24, "attention_head_dim": 128, "text_embed_dim": 4096}
TINY_MOCHI = {"num_attention_heads": 2, "attention_head_dim": 64, "pooled_projection_dim": 64, "text_embed_dim": 128}
# rival, config, layers of the public model, latents (frames, rows, columns), density of the plan, targets: over diffusers dense, planned,
# and planned in 8 bits
Model = namedtuple("Model", "rival config layers latents density targets")
MODELS = {
    "14B-720p": Model("wan", LARGE, 40, (21, 90, 160), 0.375, (1.15, 2.25, 3.2)),
    "14B-480p": Model("wan", LARGE, 40, (21, 60, 104), 0.32, (1.15, 1.8, 2.7)),
    "1.3B-480p": Model("wan", SMALLER, 30, (21, 60, 104), 0.35, (1.2, 1.8, 2.8)),
    "small": Model("wan", TINY, 2, (5, 16, 24), 0.375, (None, None, None)),
    "mochi": Model("mochi", MOCHI, 48, (28, 60, 106), 0.31, (1.25, 2.1, None)),
    "mochi-small": Model("mochi", TINY_MOCHI, 2, (5, 16, 24), 0.375, (None, None, None)),
}
CHECKED_SIZE = {"small": (5, 16, 24), "mochi-small": (5, 16, 24)}  # latents of the comparison with float32: 480 tokens; others: 1,950
TIMESTEP = 500
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WRONG = {"bf16": 0.1, "fp16": 0.0125}  # relative difference of two predictions; rounding alone makes some 0.01, in fp16 an eighth of it
WRONG_8_BITS = 0.1  # the same in 8 bits, where rounding makes some .04
WRONG_MASKS = 0.25  # the planned prediction's error over what the masks change; one head in 16 with other masks makes as much
REPLY_SECONDS = 300  # a server that says nothing for so long is ended


class Server:
    """Our side: commands are lines, replies are lines of JSON."""

    def __init__(self, path, name, folder, dtype, latents, density, arguments):
        size = [word for pair in zip(("--frames", "--height", "--width"), map(str, latents), strict=True) for word in pair]
        command = [path, "--model", name, "--weights", str(folder), "--dtype", dtype, "--serve", *size, "--density", str(density), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.ready = self._reply()
        except Exception:
            self.close()
            raise

    def _reply(self):
        timer = threading.Timer(REPLY_SECONDS, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                if line.startswith("{"):
                    break
            else:
                raise RuntimeError(f"the server ended with {self.process.wait()}")
        finally:
            timer.cancel()
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"the server: {reply['error']}")
        return reply

    def ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"the server ended with {self.process.wait()}") from None
        return self._reply()

    def predict(self, inputs, folder, masks=None):
        """[forwards, channels, frames, rows, columns]"""
        source, result = Path(folder, "inputs.safetensors"), Path(folder, "prediction.safetensors")
        predictions = []
        for text in inputs["texts"]:
            tensors = {"latents": inputs["latents"], "timestep": inputs["timestep"]}
            if len(text) > 0:
                tensors["text"] = text
            if masks is not None:
                tensors["masks"] = masks
            save_file(tensors, source)
            self.ask(f"predict {source} {result}")
            predictions.append(load_file(result)["prediction"])
        return torch.stack(predictions)

    def run(self, kind):
        begin = time.perf_counter()
        reply = self.ask(f"run {kind}")
        reply["wall_s"] = time.perf_counter() - begin
        return reply

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def make_inputs(rival, config, size):
    """On the host, in float32, all values representable in either dtype: what is compared is the arithmetic."""
    generator = torch.Generator().manual_seed(7)

    def random_values(*shape):
        return torch.randn(shape, generator=generator).bfloat16().half().float()

    latents = random_values(rival.channels, *size)
    texts = [random_values(tokens, rival.text_width(config)) for tokens in rival.text_tokens]
    return {"latents": latents, "texts": texts, "timestep": torch.tensor([float(TIMESTEP)])}


def make_masks(config, layers, size, density):
    """U8 [layers, heads, query blocks, key blocks]; a third of the heads each: bands, stripes, random blocks."""
    frame = size[1] * size[2] // 4
    shape = (config["num_attention_heads"], size[0] * frame, frame, BLOCK, BLOCK)
    return torch.from_numpy(numpy.stack([make_mask("mixed", density, *shape, seed=1 + layer) for layer in range(layers)]))


def relative_error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def one_line(error):
    return (type(error).__name__ + ": " + " ".join(str(error).split()))[:500]


class Peak:
    """The most device memory that torch held within the block, weights included."""

    def __enter__(self):
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_):
        self.gb = round(torch.cuda.max_memory_allocated() / 1e9, 3) if DEVICE == "cuda" else 0.0


def choose_backend(theirs, device_inputs, names, entry):
    """The attention backend of the fastest of two forwards."""
    times = entry["attention_backends_s"] = {}
    for name in names:
        try:
            theirs.set_attention_backend(name)
            times[name] = min(theirs.seconds(device_inputs) for _ in range(2 if len(names) > 1 else 1))
        except Exception as error:
            entry["left_out"][f"diffusers, {name}"] = one_line(error)
    if not times:
        raise RuntimeError("none of diffusers' attention backends works: " + json.dumps(entry["left_out"]))
    best = min(times, key=times.get)
    theirs.set_attention_backend(best)
    print(f"diffusers' attention backends: {times}, left out: {entry['left_out']}", flush=True)
    return best


def competitors(theirs, servers, inputs, folder, options, entry):
    """{name: function → {"s": seconds, …}}, each checked and, but for those of --not-timed, run; what else is found out goes into entry."""
    result, device_inputs = {}, theirs.to_device(inputs)

    def check(label, found, limit):
        entry["errors"][label] = difference = relative_error(found, expected)
        print(f"{label}: {difference:.5f}", flush=True)
        if not difference <= limit:
            raise RuntimeError(f"{label}: {difference:.4f}, expected at most {limit}; times of a wrong result are worth nothing")

    def add(name, run, predict=None, limit=WRONG[options.dtype]):
        try:
            if predict is not None:
                check(f"{name}, against diffusers eager at the timed size", predict(), limit)
            if name in options.not_timed:
                return
            with Peak() as peak:
                first, second = run(), run()
            entry["first_s"][name] = first["s"]
            entry["peak_gb"][name] = round(second["peak_device_bytes"] / 1e9, 3) if name.startswith(OURS) else peak.gb
            result[name] = run
            print(f"{name}: first {first['s']:.3f} s, peak {entry['peak_gb'][name]:.2f} GB", flush=True)
        except Exception as error:
            entry["left_out"][name] = one_line(error)
            print(f"{name}: left out: {entry['left_out'][name]}", flush=True)
            if DEVICE == "cuda":
                torch.cuda.empty_cache()

    entry["backend"] = choose_backend(theirs, device_inputs, options.backends, entry)
    expected = theirs.predict(inputs)
    for suffix, server in servers.items():
        for kind in ("planned", "dense"):

            def run_ours(server=server, kind=kind):
                reply = server.run(kind)
                return {**reply, "s": reply["seconds"]}

            predict = (lambda server=server: server.predict(inputs, folder)) if kind == "dense" else None
            add(OURS + kind + suffix, run_ours, predict, WRONG_8_BITS if suffix else WRONG[options.dtype])
            if OURS + kind + suffix in entry["left_out"] and kind == "dense":
                result.pop(OURS + "planned" + suffix, None)  # of the same weights and size
    for how in theirs.compilations if options.compile else ():
        name, compiled = f"diffusers, compiled{how}", {"compiled": True}
        try:
            theirs.compile(options.compile_mode, how)
        except Exception as error:
            entry["left_out"][name] = one_line(error)
            continue
        add(name, lambda: {"s": theirs.seconds(device_inputs, **compiled)}, lambda: theirs.predict(inputs, **compiled))
        if name in result:
            break
    add("diffusers, eager", lambda: {"s": theirs.seconds(device_inputs)})
    return result


def check_precision(theirs, servers, inputs, masks, expected, folder, dtype):
    """Errors against diffusers in float32, with the same masks where planned."""
    errors = {
        f"diffusers {dtype}": relative_error(theirs.predict(inputs), expected["dense"]),
        f"diffusers {dtype}, planned": relative_error(theirs.predict_masked(inputs, masks), expected["planned"]),
        "what the masks change": relative_error(expected["planned"], expected["dense"]),
    }
    limits = {}
    for suffix, server in servers.items():
        dense, planned = f"ours{suffix}", f"ours, planned{suffix}"
        errors[dense] = relative_error(server.predict(inputs, folder), expected["dense"])
        found = server.predict(inputs, folder, masks)
        errors[planned] = relative_error(found, expected["planned"])
        if suffix:  # rounding may exceed what masks change; but with other masks the prediction would not be nearest to these
            limits[dense], limits[planned] = WRONG_8_BITS, min(WRONG_8_BITS, 0.99 * relative_error(found, expected["dense"]))
        else:
            limits[dense], limits[planned] = WRONG[dtype], min(WRONG[dtype], WRONG_MASKS * errors["what the masks change"])
    for what, limit in limits.items():
        if not errors[what] <= limit:
            raise RuntimeError(f"{what}: the error is {errors[what]:.5f}, expected at most {limit:.5f}: {json.dumps(errors)}")
    return errors


def run_model(name, report, options, deadline):
    kind, config, model_layers, latents, density, _ = MODELS[name]
    layers, density = options.layers or model_layers, options.density.get(name, options.density.get("", density))
    entry = report["models"][name] = {
        "diffusers": RIVALS[kind].name, "forwards_in_a_run": len(RIVALS[kind].text_tokens), "config": config,
        "layers": layers, "layers_of_public_model": model_layers, "latents": list(latents),
        "tokens": latents[0] * latents[1] * latents[2] // 4, "density_asked": density, "errors": {}, "left_out": {}, "first_s": {},
        "peak_gb": {}, "rounds": [],
    }  # fmt: skip
    theirs = RIVALS[kind](config, layers, DTYPES[options.dtype])
    size = CHECKED_SIZE.get(name, (5, 30, 52))
    checked, masks = make_inputs(theirs, config, size), make_masks(config, layers, size, density)
    expected = {"dense": theirs.predict(checked), "planned": theirs.predict_masked(checked, masks)}
    theirs.to_dtype()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        weights = options.keep or folder
        theirs.model.save_pretrained(weights, max_shard_size="5GB")
        servers = {}
        try:
            eight_bits = {EIGHT_BITS: ["--weights-dtype", options.eight_bits, "--attention-dtype", "fp8"]} if options.eight_bits else {}
            for suffix, arguments in ({"": []} | eight_bits).items():
                arguments = [*shlex.split(options.server_args), *arguments]
                servers[suffix] = Server(options.server, name, weights, options.dtype, latents, density, arguments)
                entry["server" + suffix] = servers[suffix].ready
            entry["errors"] = check_precision(theirs, servers, checked, masks, expected, folder, options.dtype)
            print(f"{name}: errors against diffusers in float32: {json.dumps(entry['errors'])}", flush=True)
            save(report, options)
            runners = competitors(theirs, servers, make_inputs(theirs, config, latents), folder, options, entry)
            order, names = random.Random(name), list(runners)
            while len(entry["rounds"]) < options.rounds and (not entry["rounds"] or time.monotonic() < deadline):
                order.shuffle(names)
                times = {runner: runners[runner]() for runner in names}
                entry["rounds"].append({"order": list(names), "times": times})
                line = ", ".join(f"{runner} {took['s']:.4f}" for runner, took in sorted(times.items()))
                print(f"{name} round {len(entry['rounds'])}: {line}", flush=True)
                save(report, options)
        finally:
            for server in servers.values():
                server.close()
            save(report, options)


def save(report, options):
    report["figures"] = make_figures(report, {name: MODELS[name].targets for name in report["models"]})
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(json.dumps(report, indent=1) + "\n")


def machine():
    if DEVICE == "cuda":
        return describe_machine()
    return {"gpu": "none: the script itself is being tried", "torch": torch.__version__}


def density_map(text):
    """'0.375' → {"": 0.375}; '14B-720p=.375,1.3B-480p=.35' → by model."""
    pairs = [part.rpartition("=") for part in text.split(",") if part]
    return {name: float(value) for name, _, value in pairs}


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="FILE", help="calibatt_forward_bench")
    parser.add_argument("--server-args", default="", help="more options for it, as one string")
    parser.add_argument("--model", action="append", help=f"of {','.join(MODELS)}; several with commas or again (all three large ones)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of both sides")
    bits = "ours with linear layers (int8, or fp8) and attention in 8 bits, too, in a process of its own"
    parser.add_argument("--eight-bits", nargs="?", choices=("int8", "fp8"), const="int8", help=bits)
    parser.add_argument("--not-timed", default="", help="competitors that are compared but not timed: names as printed, with ';' between")
    parser.add_argument("--layers", type=int, default=8, help="of both sides; 0: all, 40 (14B), 30 (1.3B) or 48 (Mochi)")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--seconds", type=float, default=200, help="for everything; a round that has begun is finished")
    parser.add_argument("--density", type=density_map, default={}, help="of the plan: one number, or MODEL=NUMBER,… (each model's own)")
    parser.add_argument("--backends", default="_native_cudnn,native,_native_flash,_flash_3,flash", help="diffusers' attention, to try")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="diffusers eager alone")
    parser.add_argument("--compile-mode", default="default", help="of torch.compile")
    parser.add_argument("--work", default=None, metavar="FOLDER", help="for the weights, removed afterwards (/dev/shm where it is)")
    parser.add_argument("--keep", default=None, metavar="FOLDER", help="leave the transformer that both sides ran here (one model)")
    parser.add_argument("--output", default="forward.json")
    parser.add_argument("--commit", default="", help="of the server, where there is no git")
    options = parser.parse_args()
    options.model = ",".join(options.model or ["14B-720p,14B-480p,1.3B-480p"]).split(",")
    for name in [*options.model, *filter(None, options.density)]:
        if name not in MODELS:
            parser.error(f"--model, --density: expected one of {', '.join(MODELS)}, found {name}")
    if options.keep and len(options.model) > 1:
        parser.error("--keep: is for one model")
    options.backends = options.backends.split(",")
    options.not_timed = options.not_timed.split(";")
    if options.work is None and Path("/dev/shm").is_dir():
        options.work = "/dev/shm"
    return options


def main():
    options = parse_options()
    begin = time.monotonic()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # the float32 reference; 16 bits do not care
    report = {
        "machine": machine(), "command": " ".join(sys.argv), "commit": options.commit or commit_of_checkout(),
        "date": time.strftime("%Y-%m-%d"), "dtype": options.dtype, "figures": [], "models": {}, "failed": {},
        "note": "times and ratios are of models with as many layers as said, both sides the same",
    }  # fmt: skip
    for index, name in enumerate(options.model):
        left = begin + options.seconds - time.monotonic()
        if index > 0 and left <= 0:
            report["failed"][name] = "no time left"
            print(f"{name}: no time left", flush=True)
            continue
        try:
            run_model(name, report, options, time.monotonic() + left / (len(options.model) - index))
        except Exception as error:
            report["failed"][name] = one_line(error)
            print(f"{name}: failed: {report['failed'][name]}", flush=True)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        torch.compiler.reset()  # what was compiled for one model is of no use to the next
    save(report, options)
    for figure in report["figures"]:
        verdict = "" if figure["ok"] is None else ("ok" if figure["ok"] else "MISSED")
        print(f"{figure['name']:<72} {figure['value']:9.4f} {figure['unit']:<6} target {figure['target']} {verdict}")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
