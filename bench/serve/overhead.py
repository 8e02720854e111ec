#!/usr/bin/env python3
"""What a video costs by `calibatt serve` beside `calibatt generate` in one process: the same videos by both in turns, in one run.

    python3 bench/serve/overhead.py --program build/cpu/calibatt --output FILE.json                  # about three minutes on a quiet machine

Before anything is timed, both make the same video to the byte. Then each round makes the same videos by both, one after another, in an order that changes
from round to round. A video's time by `generate` is from the end of the one before it in the same process to its own end; by the service from the request to the
last byte of the reply, through one connection, with a look at it every `--poll` seconds. `run` is what the video's own report counts (text encoder, transformer,
autoencoder), `outside` the rest: the file, and in the service the request, the queue and the download.

    overhead       median of service / generate − 1 over the rounds, each of medians, with the quartiles as its spread; bar: 2 % or 20 ms
    outside_ms     the difference of the medians of `outside`, which the arithmetic's own scatter does not touch
"""
import argparse
import datetime
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/serve"))
BAR_SHARE, BAR_MS = 0.02, 20.0
PROMPT = "a red circle moves to the right"


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=str(ROOT / "build/cpu/calibatt"))
    parser.add_argument("--model", default=str(ROOT / "models/tiny-wan"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--videos", type=int, default=4, help="of each round and way [4]")
    parser.add_argument("--size", default="128x128x17", help="width × height × frames [128x128x17]")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each way [1]")
    parser.add_argument("--poll", type=float, default=0.01, help="seconds between two looks at a video [0.01]")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def seconds_of(report):
    """Of a run's report: all, and of it the text encoder."""
    seconds = json.loads(Path(report).read_text(encoding="utf-8"))["seconds"]
    return seconds["total"], seconds["text"]


def flags_of(args):
    width, height, frames = args.size.split("x")
    return ["-W", width, "-H", height, "--video-frames", frames, "--steps", str(args.steps), "--threads", str(args.threads), "--backend", args.backend]


def by_generate(args, folder, number, seed):
    """[(whole, run, text seconds)] of each video but the first, whose beginning is not known; and the first one's bytes."""
    prompts = Path(folder) / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n" * (number + 1), encoding="utf-8")
    path = Path(folder) / "g.mp4"
    subprocess.run([args.program, "generate", "-m", args.model, "--prompts", prompts, "-o", path, "-s", str(seed), *flags_of(args)],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends, reports = [], []
    for index in range(number + 1):
        video = path.with_name(f"g_{index:04}.mp4")
        ends.append(max(os.stat(video).st_ctime, os.stat(video.with_suffix(".json")).st_ctime))
        reports.append(seconds_of(video.with_suffix(".json")))
        content = video.read_bytes()
        video.unlink()
        video.with_suffix(".json").unlink()
    return [(ends[i] - ends[i - 1], *reports[i]) for i in range(1, number + 1)], content


def by_service(args, service, number, seed):
    connection = http.client.HTTPConnection("127.0.0.1", service.port)

    def ask(method, path, body=None):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        content = reply.read()
        assert reply.status == 200, content
        return content

    times = []
    for _ in range(number):
        began = time.monotonic()
        video = json.loads(ask("POST", "/v1/videos", json.dumps({"prompt": PROMPT, "seed": seed})))["id"]
        while (state := json.loads(ask("GET", f"/v1/videos/{video}"))["status"]) != "completed":
            assert state != "failed"
            time.sleep(args.poll)
        content = ask("GET", f"/v1/videos/{video}/content")
        times.append((time.monotonic() - began, *seconds_of(Path(service.folder) / video / "report.json")))
        ask("DELETE", f"/v1/videos/{video}")
    return times, content


def quartiles(values):
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 6), "quartiles": [round(low, 6), round(high, 6)]}


def main():
    args = parsed()
    os.environ["CALIBATT_PROGRAM"], os.environ["CALIBATT_MODEL"] = args.program, args.model
    from service import Service

    rounds = []
    outside, run, text = ({"generate": [], "service": []} for _ in range(3))
    # The service's other flags, --threads 1 and --backend cpu among them, are those of the tests; later ones hold.
    with tempfile.TemporaryDirectory() as folder, Service(*flags_of(args)) as service:
        ways = {"generate": lambda number, seed: by_generate(args, folder, number, seed),
                "service": lambda number, seed: by_service(args, service, number, seed)}
        assert ways["service"](1, 1)[1] == ways["generate"](1, 1)[1], "both make the same video"
        for index in range(args.rounds):
            made = {}
            for name in sorted(ways, reverse=index % 2 == 1):
                times, _ = ways[name](args.videos, index)
                made[name] = statistics.median(whole for whole, _, _ in times)
                outside[name] += [whole - seconds for whole, seconds, _ in times]
                run[name] += [seconds for _, seconds, _ in times]
                text[name] += [seconds for _, _, seconds in times]
            rounds.append({name: round(seconds, 6) for name, seconds in made.items()})
            print(f"round {index}: generate {made['generate']:.4f} s, service {made['service']:.4f} s", flush=True)
    overhead = quartiles([each["service"] / each["generate"] - 1 for each in rounds])
    overhead_ms = quartiles([1e3 * (each["service"] - each["generate"]) for each in rounds])
    outside_ms = 1e3 * (statistics.median(outside["service"]) - statistics.median(outside["generate"]))
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    met = overhead["median"] <= BAR_SHARE or overhead_ms["median"] <= BAR_MS
    result = {
        "commit": os.environ.get("COMMIT") or git.stdout.strip(), "date": datetime.date.today().isoformat(),
        "machine": {"processor": platform.processor() or platform.machine(), "processors": os.cpu_count(), "load_at_end": os.getloadavg()[0]},
        "settings": {name: getattr(args, name) for name in ("size", "steps", "rounds", "videos", "threads", "backend", "poll")},
        "checked": True, "overhead": overhead, "overhead_ms": overhead_ms, "outside_ms": round(outside_ms, 3),
        "outside_s": {name: quartiles(values) for name, values in outside.items()}, "run_s": {name: quartiles(values) for name, values in run.items()},
        "text_s": {name: quartiles(values) for name, values in text.items()},  # of the run; `generate` reads the encoder once for all its prompts
        "bar": {"share": BAR_SHARE, "ms": BAR_MS, "met": met}, "rounds": rounds,
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"overhead {100 * overhead['median']:+.2f} % ({100 * overhead['quartiles'][0]:+.2f} to {100 * overhead['quartiles'][1]:+.2f}), "
          f"{overhead_ms['median']:+.1f} ms; outside the run {outside_ms:+.1f} ms; bar {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
