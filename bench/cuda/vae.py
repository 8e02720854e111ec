#!/usr/bin/env python3
"""Times our decoders of video autoencoders beside diffusers' own (AutoencoderKLWan of Wan 2.1 and of Wan 2.2's 5B, AutoencoderKLMochi), on
one GPU, in one process.

The configuration is the public one with random weights (the time depends on shapes alone), written as a diffusers folder. First a small
clip: our error against diffusers in float32, over diffusers' own bfloat16 error. Then, size by size and round by round, all competitors
decode a whole video in random order; a figure is the median over rounds of a ratio within one round. Ours ends with the frames as bytes
in host memory; diffusers' time ends with the tensor on the GPU ("+host": as bytes in host memory too). The output is written after every
round.

Needs torch (CUDA), diffusers and numpy. Usage: vae.py --library PATH/libcalibatt_vae_bench.so --output result.json
[--architecture mochi|wan22]
"""

import argparse
import ctypes
import json
import random
import statistics
import sys
import tempfile
import time
from collections import namedtuple
from ctypes import c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path

import torch  # before our library, so that it finds torch's cuDNN and cuBLAS loaded
from attention import commit_of_checkout, describe_machine, quartiles
from diffusers import AutoencoderKLMochi, AutoencoderKLWan

# kind: as the library calls it; settings: where the public configuration is not diffusers' default; sizes: latent frames, rows, columns;
# check: the same of the clip that errors are measured on
Architecture = namedtuple("Architecture", "name kind model settings channels frames_per_latent pixels_per_latent sizes check")
WAN22 = dict(base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, patch_size=2, in_channels=12, out_channels=12,
             scale_factor_spatial=16, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)  # fmt: skip
ARCHITECTURES = {
    a.name: a for a in (
        Architecture("wan", "wan", AutoencoderKLWan, {}, 16, 4, 8, {"480p": (21, 60, 104), "720p": (21, 90, 160)}, (3, 16, 24)),
        Architecture("wan22", "wan", AutoencoderKLWan, WAN22, 48, 4, 16, {"720p": (31, 44, 80)}, (3, 8, 12)),
        Architecture("mochi", "mochi", AutoencoderKLMochi, {}, 12, 6, 8, {"85": (15, 60, 106), "163": (28, 60, 106)}, (3, 16, 24)),
    )
}  # fmt: skip
OURS = {  # fuse, candidates, latent_frames
    "ours": (0, 1, 1),
    "ours-pairs": (0, 1, 2),
    "ours-timed": (0, 4, 1),
    "ours-fused": (1, 1, 1),
    "ours-fused-timed": (1, 4, 1),
}
RIVALS = {  # ways to run diffusers' decoder
    "plain": ("diffusers", {}),
    "channels-last": ("diffusers, channels last", {"channels_last": True}),
    "cudnn-benchmark": ("diffusers, cudnn.benchmark", {"benchmark": True}),
    "tiled": ("diffusers, tiled", {"tiled": True}),
}
MAX_ERROR_RATIO, MAX_TIME_RATIO, MAX_PEAK_GB = 1.1, 0.8, 20


class Library:
    def __init__(self, path, architecture):
        self.lib, self.architecture = ctypes.CDLL(str(path)), architecture
        for name, result, arguments in [
            ("calibatt_vae_error", c_char_p, []),
            ("calibatt_vae_load", c_void_p, [c_char_p, c_char_p, c_int32, c_int32, c_int32, c_int32]),
            ("calibatt_vae_free", None, [c_void_p]),
            ("calibatt_vae_decode", c_int32, [c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p]),
            ("calibatt_vae_peak_bytes", c_int64, [c_void_p]),
            ("calibatt_vae_report", c_char_p, [c_void_p]),
        ]:
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments

    def checked(self, result, failed):
        if failed:
            raise RuntimeError(self.lib.calibatt_vae_error().decode())
        return result


class Ours:
    """Our decoder. Latents: host, float32, [channels, frames, rows, columns], normalised."""

    def __init__(self, library, folder, bf16, fuse=0, candidates=1, latent_frames=1):
        self.binding, self.architecture = library, library.architecture
        kind = self.architecture.kind.encode()
        handle = library.lib.calibatt_vae_load(kind, str(folder).encode(), int(bf16), fuse, candidates, latent_frames)
        self.handle = library.checked(handle, handle is None)

    def __del__(self):
        if getattr(self, "handle", None):
            self.binding.lib.calibatt_vae_free(self.handle)

    def _decode(self, latents, rgb, pixels):
        assert latents.dtype == torch.float32 and latents.is_contiguous() and not latents.is_cuda
        result = self.binding.lib.calibatt_vae_decode(
            self.handle, latents.data_ptr(), *latents.shape[1:], rgb.data_ptr() if rgb is not None else None,
            pixels.data_ptr() if pixels is not None else None,
        )  # fmt: skip
        self.binding.checked(result, result != 0)

    def _size(self, latents):
        """Frames, rows and columns of the video."""
        frames, rows, columns = latents.shape[1:]
        pixels = self.architecture.pixels_per_latent
        return 1 + (frames - 1) * self.architecture.frames_per_latent, pixels * rows, pixels * columns

    def to_bytes(self, latents):
        """[frames, rows, columns, 3] uint8."""
        rgb = torch.empty((*self._size(latents), 3), dtype=torch.uint8)
        self._decode(latents, rgb, None)
        return rgb

    def to_float(self, latents):
        """[frames, 3, rows, columns] float32."""
        frames, rows, columns = self._size(latents)
        pixels = torch.empty((frames, 3, rows, columns))
        self._decode(latents, None, pixels)
        return pixels

    def peak_gb(self):
        return self.binding.lib.calibatt_vae_peak_bytes(self.handle) / 1e9

    def report(self):
        return self.binding.lib.calibatt_vae_report(self.handle).decode().splitlines()


class Theirs:
    """diffusers' decoder."""

    def __init__(self, architecture, folder, dtype, channels_last=False, benchmark=False, tiled=False):
        self.vae = architecture.model.from_pretrained(folder, torch_dtype=dtype).cuda().eval()
        if tiled:
            self.vae.enable_tiling()
        if channels_last:
            for parameter in self.vae.parameters():  # Module.to() takes models without two-dimensional convolutions alone
                formats = {4: torch.channels_last, 5: torch.channels_last_3d}
                if parameter.dim() in formats:
                    parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
        self.channels_last, self.benchmark = channels_last, benchmark
        shape = (1, architecture.channels, 1, 1, 1)
        self.mean = torch.tensor(self.vae.config.latents_mean).view(shape)
        self.std = torch.tensor(self.vae.config.latents_std).view(shape)

    @torch.no_grad()
    def decode(self, latents):
        z = (latents[None] * self.std + self.mean).to("cuda", self.vae.dtype)
        if self.channels_last:
            z = z.to(memory_format=torch.channels_last_3d)
        torch.backends.cudnn.benchmark = self.benchmark
        video = self.vae.decode(z, return_dict=False)[0]
        torch.cuda.synchronize()
        return video

    def to_float(self, latents):
        return self.decode(latents)[0].permute(1, 0, 2, 3).float().cpu()

    @staticmethod
    def to_bytes(video):
        return ((video[0].float() * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()


def make_latents(architecture, size):
    return torch.randn((architecture.channels, *size), generator=torch.Generator().manual_seed(7))


def relative_error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def check_agreement(library, folder, variants):
    """Errors against diffusers in float32 on a small clip."""
    architecture = library.architecture
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    latents = make_latents(architecture, architecture.check)
    expected = Theirs(architecture, folder, torch.float32).to_float(latents).clamp(-1, 1)
    result = {"diffusers bf16": relative_error(Theirs(architecture, folder, torch.bfloat16).to_float(latents).clamp(-1, 1), expected)}
    result["ours f32"] = relative_error(Ours(library, folder, False).to_float(latents), expected)
    for name in variants:
        ours = Ours(library, folder, True, *OURS[name])
        pixels = ours.to_float(latents)
        result[name] = relative_error(pixels, expected)
        grey = ((pixels * 0.5 + 0.5) * 255).round().permute(0, 2, 3, 1)
        if int((ours.to_bytes(latents).int() - grey.int()).abs().max()) > 1:
            raise RuntimeError(f"{name}: the bytes are not the rounded pixels")
    return result


def timed(function):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    result = function()
    torch.cuda.synchronize()
    return time.perf_counter() - begin, result


def competitors(library, folder, options):
    """{name: (function of latents → seconds, function → peak GB)}"""
    result = {}
    for name in options.variants:
        ours = Ours(library, folder, True, *OURS[name])
        result[name] = (lambda latents, ours=ours: {"s": timed(lambda: ours.to_bytes(latents))[0]}, ours.peak_gb, ours)
    for way in options.rivals:
        name, arguments = RIVALS[way]
        theirs = Theirs(library.architecture, folder, torch.bfloat16, **arguments)

        def run(latents, theirs=theirs):
            seconds, video = timed(lambda: theirs.decode(latents))
            more, _ = timed(lambda: theirs.to_bytes(video))
            return {"s": seconds, "with_host_s": seconds + more}

        result[name] = (run, lambda: torch.cuda.max_memory_allocated() / 1e9, theirs)
    return result


def profile(ours, latents, top=25):
    """The kernels of one decode by time: [[name, calls, milliseconds]]."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    with torch_profile(activities=[ProfilerActivity.CUDA]) as recorded:
        ours.to_bytes(latents)
        torch.cuda.synchronize()
    rows = [[event.key[:160], event.count, event.device_time_total / 1e3] for event in recorded.key_averages()]
    return sorted(rows, key=lambda row: -row[2])[:top]


def run_size(name, report, runners, options, deadline):
    latents = make_latents(options.architecture, options.architecture.sizes[name])
    entry = report["sizes"][name] = {"latents": list(latents.shape), "first_s": {}, "rounds": [], "peak_gb": {}, "left_out": {}}
    alive = {}
    for runner, (run, peak_gb, decoder) in runners.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e9 if runner.startswith("diffusers") else 0
        try:
            peak_gb()
            entry["first_s"][runner] = run(latents)["s"]  # plans are made, kernels loaded
            if not runner.startswith("diffusers"):
                peak_gb()  # timing plans needs memory, too: what counts is a later run
                run(latents)
            entry["peak_gb"][runner] = round(peak_gb() - before + own_weights_gb(decoder), 3)
            alive[runner] = run
            print(f"{name} {runner}: first {entry['first_s'][runner]:.2f} s, peak {entry['peak_gb'][runner]:.2f} GB", flush=True)
        except Exception as error:
            entry["left_out"][runner] = " ".join(str(error).split())[:500]
            print(f"{name} {runner}: left out: {entry['left_out'][runner]}", flush=True)
    order = random.Random(name)
    for index in range(options.rounds):
        if index > 0 and time.monotonic() > deadline:
            break
        names = list(alive)
        order.shuffle(names)
        torch.cuda.empty_cache()
        entry["rounds"].append({runner: alive[runner](latents) for runner in names})
        print(f"{name} round {index + 1}: " + ", ".join(f"{n} {t['s']:.3f}" for n, t in sorted(entry["rounds"][-1].items())), flush=True)
        save(report, options)


def own_weights_gb(runner):
    """diffusers' models share torch's allocator: what is not this one's is subtracted before, its own weights are added again."""
    if isinstance(runner, Ours):
        return 0
    return sum(p.numel() * p.element_size() for p in runner.vae.parameters()) / 1e9


def save(report, options):
    report["figures"] = []

    def figure(name, value, unit, target, better="lower", **more):
        ok = value <= target if target is not None else None
        report["figures"].append({"name": name, "value": value, "unit": unit, "target": target, "ok": ok, "better": better, **more})

    errors = report["errors"]
    for variant in options.variants:
        figure(f"error over diffusers' bf16 error, {variant}", round(errors[variant] / errors["diffusers bf16"], 4), "ratio", MAX_ERROR_RATIO)
        for size, entry in report["sizes"].items():
            rounds = [r for r in entry["rounds"] if variant in r]
            if not rounds:
                continue
            for key, label in (("s", ""), ("with_host_s", ", both to bytes on the host")):
                if "diffusers" in rounds[0]:
                    ratios = [r[variant]["s"] / r["diffusers"][key] for r in rounds]
                    low, value, high = (round(x, 4) for x in quartiles(ratios))
                    target = MAX_TIME_RATIO if key == "s" else None
                    figure(f"time over diffusers', {variant}, {size}{label}", value, "ratio", target, quartiles=[low, high], rounds=len(ratios))
            fastest = [r[variant]["s"] / min(t["s"] for n, t in r.items() if n.startswith("diffusers")) for r in rounds]
            figure(f"time over diffusers' fastest, {variant}, {size}", round(statistics.median(fastest), 4), "ratio", MAX_TIME_RATIO)
            figure(f"seconds, {variant}, {size}", round(statistics.median(r[variant]["s"] for r in rounds), 4), "s", None)
            figure(f"peak memory, {variant}, {size}", entry["peak_gb"][variant], "GB", MAX_PEAK_GB)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(json.dumps(report, indent=1) + "\n")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", dest="shared_object", required=True, metavar="FILE.so", help="libcalibatt_vae_bench.so")
    parser.add_argument("--output", default="vae.json")
    parser.add_argument("--architecture", default="wan", choices=sorted(ARCHITECTURES))
    parser.add_argument("--sizes", help="default: all")
    parser.add_argument("--variants", default="ours,ours-pairs,ours-timed", help=f"of {','.join(OURS)} (ClipOptions)")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--seconds", type=float, default=240, help="for everything; a round that has begun is finished")
    parser.add_argument("--rivals", help=f"of {','.join(RIVALS)}; default: plain,channels-last, for mochi tiled too (in one piece it needs much memory)")
    parser.add_argument("--profile", action="store_true", help="the kernels of our decode at the last size, by time")
    parser.add_argument("--commit", default="", help="of the library, where there is no git")
    options = parser.parse_args()
    options.variants = options.variants.split(",")
    options.architecture = ARCHITECTURES[options.architecture]
    default = "plain,channels-last" + (",tiled" if options.architecture.name == "mochi" else "")
    options.rivals = (options.rivals or default).split(",")
    for way in options.rivals:
        if way not in RIVALS:
            parser.error(f"--rivals: expected some of {', '.join(RIVALS)}, found {way}")
    options.sizes = options.sizes.split(",") if options.sizes else list(options.architecture.sizes)
    return options


def main():
    options = parse_options()
    begin = time.monotonic()
    library = Library(options.shared_object, options.architecture)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        options.architecture.model(**options.architecture.settings).save_pretrained(folder)
        report = {
            "machine": describe_machine(), "command": " ".join(sys.argv), "commit": options.commit or commit_of_checkout(),
            "date": time.strftime("%Y-%m-%d"), "errors": check_agreement(library, folder, options.variants), "figures": [], "sizes": {},
        }  # fmt: skip
        print("errors against diffusers in float32:", json.dumps(report["errors"]), flush=True)
        save(report, options)
        torch.cuda.empty_cache()
        runners = competitors(library, folder, options)
    sizes = options.sizes
    for index, name in enumerate(sizes):
        share = 1 if index + 1 == len(sizes) else 0.35 * (index + 1)  # the last size is the largest
        run_size(name, report, runners, options, begin + options.seconds * share)
    report["engines"] = {name: runners[name][2].report() for name in options.variants}
    if options.profile:
        report["profile"] = {name: profile(runners[name][2], make_latents(options.architecture, options.architecture.sizes[sizes[-1]])) for name in options.variants}
        for name, rows in report["profile"].items():
            for kernel, calls, milliseconds in rows:
                print(f"{name}: {milliseconds:9.2f} ms {calls:5} × {kernel}")
    save(report, options)
    for figure in report["figures"]:
        verdict = "" if figure["ok"] is None else ("ok" if figure["ok"] else "MISSED")
        print(f"{figure['name']:<72} {figure['value']:9.4f} {figure['unit']:<6} target {figure['target']} {verdict}")


if __name__ == "__main__":
    main()
