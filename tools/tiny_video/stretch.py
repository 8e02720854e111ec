"""One stretch of training on a GPU machine, ending by the clock: what it leaves in --output is enough to go on elsewhere.

  python -m tools.tiny_video.stretch --state STATE --output OUT --seconds 580 --vae-minutes 6     # first
  python -m tools.tiny_video.stretch --state STATE --output OUT --seconds 580                     # resumes
  python -m tools.tiny_video.stretch --state STATE --output OUT --seconds 580 --finish            # last

Compiles the transformer in a second process while the autoencoder trains. Then samples, judges and packs (in pieces of at
most 15 MiB; `python -m tools.tiny_video.state --join OUT --state STATE` undoes that).
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tarfile
import time
import traceback

from . import architecture as architectures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    architectures.add_argument(parser)
    parser.add_argument("--state", required=True, type=pathlib.Path)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--seconds", type=float, required=True, help="from now, everything included")
    parser.add_argument("--tokenizer", help="default: the committed model's")
    parser.add_argument("--vae-minutes", type=float, default=0.0, help="0: the autoencoder is trained already")
    parser.add_argument("--reserve", type=float, default=60.0, help="seconds for sampling, judging and packing")
    parser.add_argument("--finish", action="store_true")
    parser.add_argument("--muon-rate", type=float, help="default: train_dit's")
    parser.add_argument("--high-noise-share", type=float, help="default: train_dit's")
    parser.add_argument("--settings", nargs="+", help="default: the model's")
    parser.add_argument("--heldout", default="models/tiny-wan/prompts/heldout_prompts.json")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--sample-frames", type=int, help="latent frames, where fewer than the whole clip's; then nothing is judged")
    parser.add_argument("--keep-pool", type=pathlib.Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    end = time.time() + arguments.seconds
    start = time.time()

    from . import sample, state, train_dit, train_vae

    arguments.output.mkdir(parents=True, exist_ok=True)
    arguments.state.mkdir(parents=True, exist_ok=True)
    architecture = architectures.load(arguments.model)
    common = ["--model", arguments.model, "--state", str(arguments.state), "--device", arguments.device]
    common += ["--tiny"] if arguments.tiny else []
    with_tokenizer = [*common, *(["--tokenizer", arguments.tokenizer] if arguments.tokenizer else [])]
    dit = [*with_tokenizer]
    compiler = None
    if arguments.device == "cuda":
        choice = arguments.state / "attention"
        if not choice.exists():
            choice.write_text(architecture.choose_attention())
        dit += ["--attention", choice.read_text()]
        if arguments.vae_minutes:
            command = [sys.executable, "-m", "tools.tiny_video.train_dit", *dit, "--only-compile"]
            compiler = subprocess.Popen(command, stdout=sys.stdout, stderr=sys.stderr)
    if arguments.vae_minutes:
        train_vae.main([*common, "--minutes", str(arguments.vae_minutes), *(["--steps", "4"] if arguments.tiny else [])])
    if compiler is not None:
        compiler.wait()
    minutes = (end - time.time() - arguments.reserve) / 60
    more = ["--minutes", str(minutes)]
    more += ["--finish"] if arguments.finish else []
    more += ["--muon-rate", str(arguments.muon_rate)] if arguments.muon_rate is not None else []
    more += ["--high-noise-share", str(arguments.high_noise_share)] if arguments.high_noise_share is not None else []
    more += ["--keep-pool", str(arguments.keep_pool)] if arguments.keep_pool else []
    more += ["--steps", "4"] if arguments.tiny else []
    try:
        train_dit.main(dit + more)
    except Exception:  # what is there must come back, whatever happened
        traceback.print_exc()
    print(f"training over after {time.time() - start:.0f} s", flush=True)
    for name in ("vae.pt", "average.pt", "live.pt"):
        if (arguments.state / name).exists():
            state.split(arguments.state / name, arguments.output)
    sampling = [*with_tokenizer, "-o", str(arguments.state / "samples"), "--count", str(arguments.count), "--heldout", arguments.heldout]
    sampling += ["--frames", str(arguments.sample_frames), "--no-judge"] if arguments.sample_frames else []
    sampling += ["--settings", *arguments.settings] if arguments.settings else []
    try:
        sample.main(sampling)
    except Exception:
        traceback.print_exc()
    with tarfile.open(arguments.output / "logs.tgz", "w:gz") as archive:
        for path in [*arguments.state.glob("*.jsonl"), *arguments.state.glob("samples/*")]:
            archive.add(path, path.relative_to(arguments.state))
    print(f"stretch over after {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
