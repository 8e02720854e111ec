"""What a video costs by HTTP beside `generate` in one process: the same videos by both in turns, each seen to be the same file.

Usage: overhead.py [--rounds N]. Of each video: the time from the one before it (or from the request) to the finished file (or its last byte), and what of it
lies outside the run itself, which its report counts. On a busy machine the second is the steadier one.
"""
import argparse
import http.client
import json
import os
import statistics
import subprocess
import tempfile
import time

from service import MODEL, PROGRAM, Service

FIELDS = {"prompt": "a red circle", "size": "128x128", "num_frames": 17, "num_inference_steps": 8, "guidance_scale": 5}
FLAGS = ["-W", "128", "-H", "128", "--video-frames", "17", "--steps", "8", "--cfg-scale", "5", "--threads", "2", "--backend", "cpu"]
VIDEOS = 4  # of one process; the first one's beginning is not known


def run_seconds(report):
    with open(report, encoding="utf-8") as file:
        return json.load(file)["seconds"]["total"]


def by_generate(folder, seed, prompts):
    path = os.path.join(folder, f"g{seed}")
    subprocess.run([PROGRAM, "generate", "-m", MODEL, "--prompts", prompts, "-o", path + ".mp4", "-s", str(seed), *FLAGS], check=True, capture_output=True)
    ends = [os.stat(f"{path}_{i:04d}.mp4").st_mtime for i in range(VIDEOS)]
    return [(ends[i] - ends[i - 1], run_seconds(f"{path}_{i:04d}.json")) for i in range(1, VIDEOS)]


def by_service(service, seed):
    connection = http.client.HTTPConnection("127.0.0.1", service.port)

    def ask(method, path, body=None):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().read()

    began = time.monotonic()
    video = json.loads(ask("POST", "/v1/videos", json.dumps({**FIELDS, "seed": seed})))["id"]
    while json.loads(ask("GET", f"/v1/videos/{video}"))["status"] != "completed":
        time.sleep(0.01)
    content = ask("GET", f"/v1/videos/{video}/content")
    took = time.monotonic() - began
    return (took, run_seconds(os.path.join(service.folder, video, "report.json"))), content


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=5)
    wanted = arguments.parse_args()
    alone, served = [], []
    with tempfile.TemporaryDirectory() as folder, Service() as service:
        prompts = os.path.join(folder, "prompts.txt")
        with open(prompts, "w", encoding="utf-8") as file:
            file.write(f"{FIELDS['prompt']}\n" * VIDEOS)
        by_service(service, 1000)
        for seed in range(wanted.rounds):
            alone += by_generate(folder, seed, prompts)
            for _ in range(VIDEOS - 1):
                times, content = by_service(service, seed)
                served.append(times)
            with open(os.path.join(folder, f"g{seed}_0000.mp4"), "rb") as file:
                assert file.read() == content, "both make the same video"
    medians = []
    for name, times in (("generate", alone), ("service", served)):
        for what, values in (("whole", [whole for whole, _ in times]), ("outside the run", [whole - run for whole, run in times])):
            low, median, high = statistics.quantiles(values, n=4)
            medians.append(median)
            print(f"{name:9} {what:16} {median:.4f} s (quartiles {low:.4f}, {high:.4f}; {len(values)} videos)")
    for what, one, other in (("whole", medians[0], medians[2]), ("outside the run", medians[1], medians[3])):
        print(f"overhead, {what}: {1e3 * (other - one):+.1f} ms, {100 * (other - one) / medians[0]:+.2f} % of a video")


if __name__ == "__main__":
    main()
